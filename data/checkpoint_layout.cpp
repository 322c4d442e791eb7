#include "adder/data/checkpoint_layout.h"

#include "adder/core/error.h"

#include <algorithm>
#include <filesystem>

namespace adder::layout {

namespace fs = std::filesystem;

std::string folder(const std::string& run_folder) { return (fs::path(run_folder) / "checkpoints").string(); }
std::string checkpoint(const std::string& folder, int64_t step) { return fmt::format("{}/step_{:08}", folder, step); }
std::string manifest(const std::string& checkpoint) { return checkpoint + "/manifest.json"; }
std::string file(const std::string& checkpoint, int64_t rank) {
  return fmt::format("{}/rank_{:04}.h5", checkpoint, rank);
}
std::string dataset(const std::string& tensor, int64_t begin) { return fmt::format("{}@{}", tensor, begin); }

std::vector<std::string> entries(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
    names.push_back(at->path().filename().string());
  check(!error || error == std::errc::no_such_file_or_directory, "{}: cannot be listed ({})", folder, error.message());
  return names;
}

std::vector<int64_t> steps(const std::string& folder) {
  constexpr size_t prefix = 5, fewest = 8, most = 18;  // "step_", digits
  std::vector<int64_t> found;
  for (const std::string& name : entries(folder)) {
    const bool is_step = name.starts_with("step_") && name.size() >= prefix + fewest && name.size() <= prefix + most &&
                         name.find_first_not_of("0123456789", prefix) == std::string::npos;
    if (is_step) found.push_back(std::stoll(name.substr(prefix)));
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

}  // namespace adder::layout
