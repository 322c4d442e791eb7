// Tensor files: named tensors in HDF5, contiguous datasets that any HDF5 tool shows under their names and shapes.
// Tensors pass in pieces of a few MiB: nothing is held twice. Errors name file and dataset; HDF5 prints nothing.
#pragma once

#include "adder/core/tensor.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace adder {

class TensorFileWriter {
 public:
  /// Replaces a file of that name.
  explicit TensorFileWriter(const std::string& path);
  ~TensorFileWriter();

  /// Writes a contiguous tensor (bf16 as its bits, uint16); returns zlib's crc32 of its bytes.
  uint32_t write(const std::string& dataset, const Tensor& tensor);
  /// Closes the file and waits until the disk has it; without close() the file is worthless.
  void close();

 private:
  struct File;
  std::string path_;
  std::unique_ptr<File> file_;
};

/// Open a file only if it is known to be whole (file_crc): HDF5 trusts what it reads.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path);
  ~TensorFile();

  /// Hands all elements to use(chunk [n], first element) in row-major order; returns the crc32 of their bytes. Throws
  /// if the dataset has another type or number of elements.
  uint32_t read(const std::string& dataset, DType type, int64_t count,
                const std::function<void(const Tensor& chunk, int64_t first)>& use) const;

 private:
  struct File;
  std::string path_;
  std::unique_ptr<File> file_;
};

/// zlib's crc32 of a file's bytes.
uint32_t file_crc(const std::string& path);
/// Waits until the disk has a file's bytes or a folder's entries.
void sync(const std::string& path);

}  // namespace adder
