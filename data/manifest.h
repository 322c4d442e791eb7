// The manifest of a checkpoint: which piece of which tensor lies in which file, the values beside them, and a checksum
// of every file, of every piece and of itself.
#pragma once

#include "adder/autograd/state.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace adder {

/// Indices [begin, end) of the tensor's axis, a dataset of the file of rank `file`.
struct StoredPiece {
  int64_t begin = 0, end = 0;
  int64_t file = 0;
  uint32_t crc = 0;  // zlib's crc32 of its bytes
};

/// A whole tensor; axis as in Piece. The pieces lie end to end.
struct StoredTensor {
  DType dtype = DType::f32;
  Shape shape;
  int axis = -1;
  std::vector<StoredPiece> pieces;

  /// What begin and end count: the size of the axis, or all elements.
  int64_t length() const { return axis < 0 ? shape.count() : shape[axis]; }
};

struct StoredFile {
  int64_t bytes = 0;
  uint32_t crc = 0;
};

struct Manifest {
  static constexpr int64_t current_format = 1;
  int64_t format = current_format;
  int64_t step = 0;
  std::vector<StoredFile> files;                // of the ranks 0, 1, ...
  std::map<std::string, StoredTensor> tensors;  // by state and name: "parameters/block/3/weight"
  std::map<std::string, Values> values;         // by state
};

/// JSON whose first line is the crc32 of all that follows.
std::string to_text(const Manifest& manifest);
/// Throws, naming `name`, if a bit is flipped or an entry malformed; of another format only its number is read.
Manifest parse_manifest(const std::string& text, const std::string& name);

/// Adds what another rank holds: its files after the others, its pieces except for ranges that are there already.
void merge(Manifest& manifest, const Manifest& rank);
/// Throws unless the pieces of every tensor lie end to end from 0 to its length.
void check_complete(const Manifest& manifest, const std::string& name);

}  // namespace adder
