// SafetensorsFile: what it accepts can be read, every tensor of it.
#include "adder/data/safetensors.h"
#include "adder/tests/fuzz/fuzz.h"

using namespace adder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string path = fuzz::scratch().write("a.safetensors", {reinterpret_cast<const char*>(data), size});
  fuzz::accepts([&] {
    const SafetensorsFile file(path);
    for (const auto& [name, entry] : file.tensors()) fuzz::must(file.read(name).shape() == entry.shape);
  });
  return 0;
}
