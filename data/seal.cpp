#include "adder/data/seal.h"

#include "adder/core/error.h"
#include "adder/data/file.h"
#include "adder/distributed/run_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace adder {
namespace {

std::string numbers(const Seal& s) { return fmt::format("bytes {} apart {} {}", s.bytes, s.begin, s.end); }

std::string text(const Seal& s, const std::string& kind) {
  std::string all = fmt::format("{}\n{} crc {:08x}", kind, numbers(s), s.crc);
  all.resize(static_cast<size_t>(Seal::size) - 1, ' ');
  return all + '\n';
}

// Reads up to `count` bytes; fewer only where the file ends.
std::string bytes_at(int file, const std::string& path, int64_t from, int64_t count) {
  std::string bytes(static_cast<size_t>(count), '\0');
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = pread(file, bytes.data() + done, bytes.size() - done, from + static_cast<int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    check(n >= 0, "{}: cannot be read ({})", path, std::strerror(errno));
    if (n == 0) bytes.resize(done);
    done += static_cast<size_t>(n);
  }
  return bytes;
}

uint32_t checksum(int file, const std::string& path, const Seal& s) {
  constexpr int64_t chunk = int64_t{1} << 20;
  const std::string first = numbers(s);
  uint32_t crc = crc_of(first.data(), first.size());
  for (const auto& [begin, end] : {std::pair(Seal::size, s.begin), std::pair(s.end, s.bytes)})
    for (int64_t at = begin; at < end; at += chunk) {
      const std::string bytes = bytes_at(file, path, at, std::min(chunk, end - at));
      crc = crc_of(bytes.data(), bytes.size(), crc);
    }
  return crc;
}

int64_t size_of_file(int file, const std::string& path) {
  struct stat status {};
  check(fstat(file, &status) == 0, "{}: cannot be read ({})", path, std::strerror(errno));
  return status.st_size;
}

}  // namespace

void write_seal(const std::string& path, const std::string& kind, int64_t begin, int64_t end) {
  const Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  check(file.get() >= 0, "{}: cannot be opened ({})", path, std::strerror(errno));
  Seal s{.bytes = size_of_file(file.get(), path), .begin = begin, .end = end};
  check(Seal::size <= begin && begin <= end && end <= s.bytes, "{}: the range {} to {} does not lie in its {} bytes",
        path, begin, end, s.bytes);
  s.crc = checksum(file.get(), path, s);
  const std::string seal = text(s, kind);
  const ssize_t written = pwrite(file.get(), seal.data(), seal.size(), 0);
  check(written == Seal::size, "{}: cannot be written ({})", path, std::strerror(errno));
}

Seal check_seal(int descriptor, const std::string& path, const std::string& kind) {
  const std::string seal = bytes_at(descriptor, path, 0, Seal::size);
  const std::string name = kind.substr(0, kind.rfind(' '));
  check(seal.starts_with(name + " "), "{}: is no {}, or its first bytes are damaged", path, name);
  const size_t digits = name.size() + 1, line = seal.find_first_not_of("0123456789", digits);
  check(line < seal.size() && line > digits && seal[line] == '\n', "{}: its first bytes are damaged", path);
  check(seal.substr(0, line) == kind, "{}: {} of format {}, this program reads format {}", path, name,
        seal.substr(digits, line - digits), kind.substr(digits));
  Seal s;
  const std::string rest = seal.substr(kind.size());
  const int found = std::sscanf(rest.c_str(), "\nbytes %19ld apart %19ld %19ld crc %8x", &s.bytes, &s.begin, &s.end,
                                &s.crc);
  const bool ordered = Seal::size <= s.begin && s.begin <= s.end && s.end <= s.bytes;
  check(found == 4 && ordered && text(s, kind) == seal, "{}: its first bytes are damaged", path);
  const int64_t bytes = size_of_file(descriptor, path);
  check(bytes >= s.bytes, "{}: cut short: {} bytes of {}", path, bytes, s.bytes);
  check(bytes == s.bytes, "{}: damaged: {} bytes instead of {}", path, bytes, s.bytes);
  check(checksum(descriptor, path, s) == s.crc, "{}: damaged: its checksum does not match", path);
  return s;
}

}  // namespace adder
