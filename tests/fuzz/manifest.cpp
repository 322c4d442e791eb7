// parse_manifest: as it is, and with the right checksum in front, as one that was forged. What it accepts is the same
// when it is written and read again.
#include "adder/data/manifest.h"
#include "adder/tests/fuzz/fuzz.h"

#include <zlib.h>

using namespace adder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto crc = static_cast<uint32_t>(crc32_z(0, data, size));
  for (const std::string& whole : {text, fmt::format("{{\"crc\": \"{:08x}\",\n{}", crc, text)})
    fuzz::accepts([&] {
      const Manifest manifest = parse_manifest(whole, "manifest.json");
      const std::string again = to_text(manifest);
      fuzz::must(to_text(parse_manifest(again, "manifest.json")) == again);
      check_complete(manifest, "manifest.json");
    });
  return 0;
}
