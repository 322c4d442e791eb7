#include "adder/core/error.h"

#include <string_view>

namespace adder {

namespace {
// "/home/me/adder/core/tensor.cpp" -> "core/tensor.cpp": the path from the last folder that starts a source path.
std::string short_path(std::string_view path) {
  const auto slash = path.rfind('/');
  if (slash == std::string_view::npos) return std::string(path);
  const auto before = path.rfind('/', slash - 1);
  return std::string(path.substr(before == std::string_view::npos ? 0 : before + 1));
}
}  // namespace

Error::Error(const std::string& sentence, std::source_location at)
    : std::runtime_error(sentence), where_(fmt::format("{}:{}", short_path(at.file_name()), at.line())) {}

}  // namespace adder
