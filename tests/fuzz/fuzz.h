// What every fuzz target does: hands bytes to a reader as a file, and lets it throw adder's own errors only. Anything
// else that it throws, a crash, a leak and undefined behaviour end the program.
#pragma once

#include "adder/core/error.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace adder::fuzz {

/// A folder in memory, gone when the program is.
class Scratch {
 public:
  Scratch() : path_(fmt::format("/dev/shm/adder_fuzz_{}", getpid())) { std::filesystem::create_directories(path_); }
  ~Scratch() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string path() const { return path_; }
  /// Writes a file and returns its path.
  std::string write(const std::string& name, std::string_view bytes) const {
    std::ofstream(*this / name, std::ios::binary) << bytes;
    return *this / name;
  }

 private:
  std::string path_;
};

inline const Scratch& scratch() {
  static const Scratch folder;
  return folder;
}

/// A property of what a reader accepted.
inline void must(bool holds) {
  if (!holds) std::abort();
}

/// Runs f; false if it threw one of adder's errors, a sentence.
template <class F>
bool accepts(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    must(!std::string_view(error.what()).empty());
    return false;
  }
  return true;
}

}  // namespace adder::fuzz
