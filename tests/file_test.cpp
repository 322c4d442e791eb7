#include "adder/data/file.h"

#include "catch.h"

#include <string_view>

using namespace adder;

// Shards, checkpoints and seals promise zlib's crc32, so that another program can check them.
TEST_CASE("file: the checksum is CRC-32 as zlib, gzip and PNG have it, in one piece or several") {
  constexpr std::string_view text = "123456789";  // the check value of the catalogue of CRCs
  CHECK(crc_of(text.data(), text.size()) == 0xcbf43926u);
  CHECK(crc_of(text.data() + 4, 5, crc_of(text.data(), 4)) == 0xcbf43926u);
  CHECK(crc_of(text.data(), 0) == 0u);
}
