#include "adder/core/error.h"
#include "adder/data/machine_text.h"
#include "adder/data/text.h"

#include "catch.h"
#include "adder/tests/temporary_folder.h"

#include <map>

using namespace adder;

namespace {
/// `size` bytes of text that no other number gives.
std::string text(int number, size_t size) {
  std::string text = "text " + std::to_string(number) + "\n";
  while (text.size() < size) text += std::to_string(hash_bytes(text)) + "\n";
  return text.substr(0, size);
}

void make_machine(const TemporaryFolder& folder) {
  int number = 0;
  for (int i = 0; i < 30; ++i) {
    folder.write("usr/include/c++/12/header" + std::to_string(i), text(++number, 4000));
    folder.write("usr/include/fmt/header" + std::to_string(i) + ".h", text(++number, 1000));
    folder.write("usr/share/doc/package" + std::to_string(i) + "/copyright", text(++number, 3000));
    folder.write("usr/share/perl/5.36/Module" + std::to_string(i) + ".pm", text(++number, 700));
    folder.write("usr/share/cmake-3.25/" + std::to_string(i) + ".cmake", text(++number, 500));
  }
  folder.write("usr/share/doc/package1/copy", text(3, 3000));                       // byte for byte package0/copyright
  folder.write("usr/share/doc/package1/like", text(3, 512) + "then it differs");
  folder.write("usr/share/doc/package2/logo", std::string("\0\1\2", 3));
  folder.write("usr/share/doc/package2/latin", "caf\xe9");
  folder.write("usr/share/perl/5.36/no-module.so", "left out by its name");
  folder.write("adder/core/tensor.h", text(++number, 900));
  folder.write("adder/build/core/tensor.h", "left out");
  folder.write("adder/.git/x.h", "left out");
}

MachineTextOptions options_of(const TemporaryFolder& folder) {
  return {.prefix = folder / "usr", .repository = folder / "adder", .wanted_bytes = 100'000, .most_bytes = 200'000,
          .package_bytes = 60'000};
}
}  // namespace

TEST_CASE("machine text: the limits of package, source and total hold, and repetitions are dropped") {
  const TemporaryFolder folder;
  make_machine(folder);
  const auto reports = write_machine_text(folder / "text.jsonl.zst", options_of(folder));
  int64_t total = 0;
  std::map<std::string, SourceReport> by_name;
  for (const auto& report : reports) {
    by_name[report.source] = report;
    total += report.bytes;
  }
  CHECK(total >= 100'000);
  CHECK(total <= 200'000);
  for (const auto& report : reports) CHECK(static_cast<double>(report.bytes) <= 0.4 * static_cast<double>(total));
  CHECK(by_name["C++ headers"].packages == 2);
  CHECK(by_name["C++ headers"].over_limit >= 15);  // 120 kB of one package, 60 kB allowed
  CHECK(by_name["Documentation"].repeated == 2);
  CHECK(by_name["Documentation"].not_text == 2);
  CHECK(by_name["Perl"].documents == 30);
  CHECK(by_name["adder"].documents == 1);

  std::map<std::string, int64_t> bytes;
  read_text({folder / "text.jsonl.zst"},
            [&](const Document& document) { bytes[document.source] += static_cast<int64_t>(document.text.size()); });
  for (const auto& report : reports) CHECK(bytes[report.source] == report.bytes);
}

TEST_CASE("machine text: the same machine gives the same file") {
  const TemporaryFolder folder;
  make_machine(folder);
  write_machine_text(folder / "a.jsonl", options_of(folder));
  write_machine_text(folder / "b.jsonl", options_of(folder));
  CHECK(file_bytes(folder / "a.jsonl") == file_bytes(folder / "b.jsonl"));
}

TEST_CASE("machine text: too little text is refused and nothing is written") {
  const TemporaryFolder folder;
  make_machine(folder);
  auto options = options_of(folder);
  options.wanted_bytes = 8'000'000;
  REQUIRE_THROWS_WITH(write_machine_text(folder / "text.jsonl.zst", options), ContainsSubstring("8000000 wanted"));
  CHECK(!std::filesystem::exists(folder / "text.jsonl.zst"));
}
