// TokenShard: the seal keeps damaged files from HDF5, and the checksums of blocks keep damaged tokens from us. A file
// with another seal than ours would have to be forged, and is not looked into.
#include "adder/data/token_shard.h"
#include "adder/tests/fuzz/fuzz.h"

using namespace adder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string path = fuzz::scratch().write("a.h5", {reinterpret_cast<const char*>(data), size});
  fuzz::accepts([&] {
    const TokenShard shard(path);
    std::vector<int32_t> tokens(static_cast<size_t>(shard.tokens()));
    shard.read(0, tokens);
    for (const int32_t token : tokens) fuzz::must(0 <= token && token < shard.info().vocabulary);
    shard.verify();
  });
  return 0;
}
