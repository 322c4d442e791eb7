// safetensors: named tensors in one file, the form in which Hugging Face keeps weights.
//
//   8 bytes   length of the header, little-endian
//   header    JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//                    "__metadata__": {"key": "text"}}
//   bytes     of the tensors, row-major, little-endian, end to end; offsets count from the end of the header
#pragma once

#include "adder/core/tensor.h"
#include "adder/distributed/run_folder.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace adder {

/// Where a tensor lies in a safetensors file.
struct SafetensorsEntry {
  std::string dtype;              // F64, F32, F16, BF16 or I32
  Shape shape;
  int64_t begin = 0, end = 0;     // bytes, from the end of the header
};

/// A file open for reading. Opening reads the header alone and checks all of it: its length, the JSON, names given
/// twice, dtypes, shapes of up to six axes, ranges that do not have the tensor's size, overlap, leave gaps or pass the
/// end of the file. Errors name file and tensor.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Fills a contiguous tensor from the disk, converting between floating types. Throws if there is no tensor of that
  /// name or it has another shape.
  void read(const std::string& name, const Tensor& to) const;
  /// A new tensor: f64 and i32 as they are stored, every other type as f32.
  Tensor read(const std::string& name) const;

 private:
  const SafetensorsEntry& entry(const std::string& name) const;
  void parse(const std::string& header);
  void check_ranges(int64_t bytes) const;

  std::string path_;
  Descriptor file_;
  int64_t data_ = 0;  // where the bytes of the tensors begin
  std::map<std::string, SafetensorsEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// A tensor of a file to be written: contiguous; the shape, of as many elements, is what the file will say.
struct NamedTensor {
  std::string name;
  Shape shape;
  Tensor tensor;
};

/// Writes a file that appears whole or not at all. Wide types come first, so that every tensor is aligned, and names
/// are in order: the same tensors give the same bytes.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace adder
