// read_text: JSON lines and plain text, plain, gzip and zstd. The first byte says which.
#include "adder/data/text.h"
#include "adder/tests/fuzz/fuzz.h"

using namespace adder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const char* const names[] = {"a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst", "a.txt.gz"};
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string path = fuzz::scratch().write(names[data[0] % 6], bytes);
  fuzz::accepts([&] {
    const TextProgress all = read_text({path}, [](const Document& document) {
      fuzz::must(!document.text.empty() && !invalid_utf8(document.text) && !invalid_utf8(document.source));
    });
    fuzz::must(all.read_bytes == all.total_bytes);
  });
  return 0;
}
