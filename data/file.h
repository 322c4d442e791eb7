// Files: bytes in, whatever their compression; bytes out, whole or not at all.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace adder {

/// The bytes of a file as they were before compression: zstd if the name ends in .zst (any window), gzip or plain
/// otherwise. Holds its buffers only. Errors name the file: missing, a folder, unreadable, damaged, cut short.
class InputFile {
 public:
  explicit InputFile(const std::string& path);

  size_t read(std::span<char> to);       // fills `to` unless the file ends; 0 at the end
  int64_t position() const;              // bytes taken from the disk so far, for progress
  const std::string& path() const { return path_; }

 private:
  struct Streams;
  size_t read_stored(std::span<char> to);  // before zstd
  size_t read_zstd(std::span<char> to);

  std::string path_;
  std::shared_ptr<Streams> streams_;
};

/// A file that appears under its name whole or not at all. Bytes go to PATH.partial, through zstd if the name ends in
/// .zst; commit() syncs and renames. Without commit() nothing is left.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  void write(std::string_view bytes);
  void commit();

 private:
  struct Streams;
  void compress(std::string_view bytes, bool last);
  void store(std::string_view bytes);

  std::string path_, partial_;
  bool committed_ = false;
  std::unique_ptr<Streams> streams_;
};

/// zlib's crc32 of bytes; `before` is that of the bytes in front of them.
uint32_t crc_of(const void* bytes, size_t count, uint32_t before = 0);

/// Syncs the finished file `partial`, renames it to `path` and syncs the folder, so that a power cut leaves either the
/// old file or the new one.
void publish(const std::string& partial, const std::string& path);

}  // namespace adder
