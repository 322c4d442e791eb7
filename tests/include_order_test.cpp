// The order of the folders and the lightness of the headers, held by reading every include of the repository.
#include "catch.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

// A folder may include itself and the folders before it; the last four include anything but one another.
const std::vector<std::string> line = {"core", "kernels", "autograd", "distributed", "layers", "optim", "data"};
const std::set<std::string> ends = {"recipes", "bench", "tests", "docs"};

size_t place(const std::string& folder) { return std::ranges::find(line, folder) - line.begin(); }

// What a header may name in <>: the standard library but <iostream>, fmt, and what the compiler itself brings.
bool light(const std::string& name) {
  static const std::set<std::string> compiler = {"omp.h", "immintrin.h"};
  if (name == "iostream") return false;
  return name.starts_with("fmt/") || compiler.contains(name) || name.find_first_of("./") == std::string::npos;
}

// Libraries that take seconds to compile, and the one source that may name each.
const std::map<std::string, std::string> heavy = {{"nlohmann/json.hpp", "core/json.cpp"},
                                                  {"CLI/CLI.hpp", "distributed/flags.cpp"}};

// One sentence for each include of the text that breaks a rule; `path` is relative to the repository.
std::vector<std::string> faults(const std::string& path, const std::string& text) {
  static const std::regex include(R"re(^\s*#\s*include\s*(["<])([^">]+)[">])re");
  const std::string from = path.substr(0, path.find('/'));
  std::vector<std::string> found;
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string row; std::getline(lines, row);) {
    ++number;
    std::smatch match;
    if (!std::regex_search(row, match, include)) continue;
    const std::string name = match[2];
    const auto fault = [&](const std::string& why) {
      found.push_back(path + ":" + std::to_string(number) + ": " + name + " " + why);
    };
    if (match[1] == "<") {
      if (path.ends_with(".h") && from != "tests" && !light(name)) fault("belongs in a source, not in a header");
      if (const auto one = heavy.find(name); one != heavy.end() && path != one->second && !path.ends_with(".h"))
        fault("belongs in " + one->second + " alone");
    } else if (!name.starts_with("adder/")) {
      if (from != "tests" || name != "catch.h") fault("is not named from the root, as in \"adder/core/error.h\"");
    } else {
      const std::string to = name.substr(6, name.find('/', 6) - 6);
      if (to == from) continue;
      if (place(to) == line.size()) fault("is in no folder of the library");
      else if (!ends.contains(from) && place(to) > place(from)) fault("turns the order of the folders around");
    }
  }
  return found;
}

}  // namespace

TEST_CASE("include order: every source of the repository keeps it") {
  const fs::path root = ADDER_SOURCE_DIR;
  std::vector<std::string> folders = line, found;
  folders.insert(folders.end(), ends.begin(), ends.end());
  int64_t sources = 0;
  for (const auto& folder : folders) {
    if (!fs::exists(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string end = entry.path().extension();
      if (end != ".h" && end != ".cpp" && end != ".cu" && end != ".cuh") continue;
      std::ifstream file(entry.path());
      const std::string text(std::istreambuf_iterator<char>(file), {});
      for (const auto& fault : faults(fs::relative(entry.path(), root), text)) found.push_back(fault);
      ++sources;
    }
  }
  for (const auto& fault : found) UNSCOPED_INFO(fault);
  CHECK(found.empty());
  CHECK(sources >= 5);
}

TEST_CASE("include order: a folder includes itself and those before it, and nothing after") {
  CHECK(faults("layers/mamba2.cpp", "#include \"adder/layers/linear.h\"\n#include \"adder/kernels/ssd.h\"\n").empty());
  CHECK(faults("recipes/train.cpp", "#include \"adder/data/loader.h\"\n").empty());
  const auto found = faults("kernels/ssd.h", "#pragma once\n  # include \"adder/optim/adamw.h\"  // why\n");
  REQUIRE(found.size() == 1);
  CHECK(found[0] == "kernels/ssd.h:2: adder/optim/adamw.h turns the order of the folders around");
  CHECK(faults("core/tensor.cpp", "#include \"adder/kernels/matmul.h\"\n").size() == 1);
  CHECK(faults("data/loader.cpp", "#include \"adder/recipes/train.h\"\n").size() == 1);
  CHECK(faults("bench/ssd.cpp", "#include \"adder/recipes/train.h\"\n").size() == 1);
}

TEST_CASE("include order: includes are named from the root") {
  CHECK(faults("core/tensor.cpp", "#include \"tensor.h\"\n").size() == 1);
  CHECK(faults("core/tensor.cpp", "#include \"../core/tensor.h\"\n").size() == 1);
  CHECK(faults("core/tensor.cpp", "#include \"core/tensor.h\"\n").size() == 1);
  CHECK(faults("core/tensor.cpp", "#include \"catch.h\"\n").size() == 1);
  CHECK(faults("tests/tensor_test.cpp", "#include \"catch.h\"\n").empty());
}

TEST_CASE("include order: what takes long to compile is included in one place") {
  CHECK(faults("core/json.h", "#include <nlohmann/json.hpp>\n").size() == 1);
  CHECK(faults("data/text.cpp", "#include <nlohmann/json.hpp>\n").size() == 1);
  CHECK(faults("core/json.cpp", "#include <nlohmann/json.hpp>\n").empty());
  CHECK(faults("recipes/train.cpp", "#include <CLI/CLI.hpp>\n").size() == 1);
}

TEST_CASE("include order: headers stay light") {
  for (const char* name : {"cuda.h", "nccl.h", "mpi.h", "hdf5.h", "catch2/catch.hpp", "iostream", "zstd.h", "cblas.h",
                           "Eigen/Dense"}) {
    CAPTURE(name);
    const std::string text = std::string("#include <") + name + ">\n";
    CHECK(faults("core/tensor.h", text).size() == 1);
    CHECK(faults("core/tensor.cpp", text).empty());
  }
  CHECK(faults("core/tensor.h", "#include <vector>\n#include <fmt/format.h>\n#include <immintrin.h>\n").empty());
}
