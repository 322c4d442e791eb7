// Seal: the first 512 bytes of a file, a text that says how long the file is and what checksum it has. HDF5 trusts the
// files that it opens, and may crash on damaged ones: a sealed file is compared with its seal first.
//
//   adder token shard 2
//   bytes 19056 apart 2560 12832 crc 1f0c23ab        then spaces, and a line feed at the end
//
// The range [apart] is left out of the checksum: the bulk of a large file, whose blocks have checksums of their own.
#pragma once

#include <cstdint>
#include <string>

namespace adder {

struct Seal {
  static constexpr int64_t size = 512;  // of the text: HDF5 calls it the user block

  int64_t bytes = 0;             // of the whole file
  int64_t begin = 0, end = 0;    // the range that is left out, beyond the seal
  uint32_t crc = 0;              // zlib's crc32 of the numbers above as they are written, and of all other bytes
};

/// Writes the seal of a finished file, whose first 512 bytes are free, and leaves [begin, end) out. `kind` is the first
/// line: what the file is, and the number of its format.
void write_seal(const std::string& path, const std::string& kind, int64_t begin, int64_t end);

/// The seal of an open file; throws, naming `path`, unless it is of this kind and the file is as it was sealed.
Seal check_seal(int descriptor, const std::string& path, const std::string& kind);

}  // namespace adder
