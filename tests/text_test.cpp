#include "adder/core/error.h"
#include "adder/data/text.h"

#include "catch.h"
#include "adder/tests/temporary_folder.h"

#include <sys/resource.h>
#include <zlib.h>

#include <csignal>

using namespace adder;

namespace {
std::vector<Document> all(const std::vector<std::string>& inputs) {
  std::vector<Document> documents;
  read_text(inputs, [&](const Document& document) { documents.push_back(document); });
  return documents;
}

std::string complaint(const std::string& input) {
  try {
    all({input});
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}
}  // namespace

TEST_CASE("text: what is written as jsonl comes back, packed or not") {
  const TemporaryFolder folder;
  std::vector<Document> documents{{"one\nline \"two\"\t\\ \x01", "A"}, {"Öl, \xf0\x9f\x90\x8d", "B"}};
  for (int i = 0; i < 90; ++i)
    documents.push_back({std::string(static_cast<size_t>(17 * i * i + 1), static_cast<char>('a' + i % 26)), "A"});
  for (const char* name : {"text.jsonl", "text.jsonl.zst"}) {
    TextWriter writer(folder / name);
    for (const auto& document : documents) writer.add(document);
    CHECK(!std::filesystem::exists(folder / name));
    writer.finish();
    const auto back = all({folder / name});
    REQUIRE(back.size() == documents.size());
    for (size_t i = 0; i < back.size(); ++i) {
      CHECK(back[i].text == documents[i].text);
      CHECK(back[i].source == documents[i].source);
    }
  }
  CHECK(std::filesystem::file_size(folder / "text.jsonl.zst") < std::filesystem::file_size(folder / "text.jsonl") / 10);
}

TEST_CASE("text: a writer that does not finish leaves nothing") {
  const TemporaryFolder folder;
  { TextWriter(folder / "text.jsonl.zst").add({"lost", "A"}); }
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("text: a writer that finds the disk full says so and leaves nothing") {
  const TemporaryFolder folder;
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
  const rlimit low{.rlim_cur = 1000, .rlim_max = old.rlim_max};
  std::string said;
  for (const std::string name : {"few.jsonl", "many.jsonl"}) {  // the first is noticed when the file is closed
    try {
      TextWriter writer(folder / name);
      setrlimit(RLIMIT_FSIZE, &low);
      writer.add({std::string(name == "few.jsonl" ? 2'000 : 1'000'000, 'x'), "A"});
      writer.finish();
    } catch (const Error& error) {
      said += error.what() + std::string("\n");
    }
    setrlimit(RLIMIT_FSIZE, &old);
  }
  std::signal(SIGXFSZ, before);
  CHECK_THAT(said, ContainsSubstring("few.jsonl.partial: cannot be written (File too large)"));
  CHECK_THAT(said, ContainsSubstring("many.jsonl.partial: cannot be written (File too large)"));
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("text: jsonl allows empty lines, a missing last end of line, no meta, and leaves out empty texts") {
  const TemporaryFolder folder;
  const auto path = folder.write("x.jsonl", "{\"text\":\"a\"}\r\n\n  \n{\"text\":\"\"}\n{\"meta\":{},\"text\":\"b\"}");
  const auto documents = all({path});
  REQUIRE(documents.size() == 2);
  CHECK(documents[0].text == "a");
  CHECK(documents[1].text == "b");
  CHECK(documents[1].source == "text");
}

TEST_CASE("text: a folder is read in sorted order without hidden and binary files") {
  const TemporaryFolder folder;
  folder.write("notes/b.txt", "second");
  folder.write("notes/a/z.txt", "first");
  folder.write("notes/.git/config", "hidden");
  folder.write("notes/picture.png", std::string("PNG\0\xff", 5));
  folder.write("notes/c.jsonl", "{\"text\":\"third\",\"meta\":{\"pile_set_name\":\"named\"}}\n");
  gzFile gzip = gzopen((folder / "notes/d.txt.gz").c_str(), "wb");
  gzputs(gzip, "fourth");
  gzclose(gzip);
  std::string texts, sources;
  const auto progress = read_text({folder / "notes"}, [&](const Document& document) {
    texts += document.text + " ";
    sources += document.source + " ";
  });
  CHECK(texts == "first second third fourth ");
  CHECK(sources == "notes notes named notes ");
  CHECK(progress.documents == 4);
  CHECK(progress.text_bytes == 22);
  CHECK(progress.skipped_files == 1);
  CHECK(progress.read_bytes == progress.total_bytes);
}

TEST_CASE("text: a long plain file becomes documents of whole lines and whole characters") {
  const TemporaryFolder folder;
  std::string lines, characters = "x";
  while (lines.size() < 700'000) lines += "line " + std::to_string(lines.size()) + "\n";
  while (characters.size() < 300'000) characters += "€";
  for (const auto& text : {lines, characters}) {
    std::string joined;
    for (const auto& document : all({folder.write("long.txt", text)})) {
      CHECK(document.text.size() <= 65536);
      CHECK(!invalid_utf8(document.text));
      if (text == lines) CHECK(document.text.back() == '\n');
      joined += document.text;
    }
    CHECK(joined == text);
  }
}

TEST_CASE("text: bad lines are named by file and line") {
  const TemporaryFolder folder;
  const std::string good = "{\"text\":\"a\"}\n";
  const auto named = [&](const std::string& line) {
    return complaint(folder.write("x.jsonl", good + good + line + "\n" + good));
  };
  CHECK_THAT(named("{\"text\": oops}"), Catch::Matchers::Equals((folder / "x.jsonl") + ", line 3, byte 10: not JSON"));
  CHECK_THAT(named("{\"text\":\"cut"), ContainsSubstring("x.jsonl, line 3, byte") && ContainsSubstring("not JSON"));
  CHECK_THAT(named("[1]"), ContainsSubstring("x.jsonl, line 3: not a JSON object"));
  CHECK_THAT(named("{\"txt\":\"a\"}"), ContainsSubstring("x.jsonl, line 3: no \"text\""));
  CHECK_THAT(named("{\"text\":7}"), ContainsSubstring("x.jsonl, line 3: \"text\" is not a string"));
  CHECK_THAT(named("{\"text\":\"\xff\"}"), ContainsSubstring("x.jsonl, line 3, byte 10: not UTF-8 (0xff)"));
  CHECK_THAT(complaint(folder.write("x.txt", "ab\nc\xc3")),
             ContainsSubstring("x.txt, line 2, byte 2: not UTF-8 (0xc3)"));
}

TEST_CASE("text: missing, empty and cut files are named") {
  const TemporaryFolder folder;
  CHECK_THAT(complaint(folder / "nothing.jsonl"), ContainsSubstring("nothing.jsonl: no such file or folder"));
  std::filesystem::create_directory(folder / "empty");
  CHECK_THAT(complaint(folder / "empty"), ContainsSubstring("empty: the folder holds no files"));
  {
    TextWriter writer(folder / "whole.jsonl.zst");
    for (int64_t i = 0; i < 9999; ++i) writer.add({std::to_string(i * i * 7919), "A"});
    writer.finish();
  }
  const auto bytes = file_bytes(folder / "whole.jsonl.zst");
  CHECK_THAT(complaint(folder.write("cut.jsonl.zst", bytes.substr(0, bytes.size() / 2))),
             ContainsSubstring("cut.jsonl.zst: the file is cut short"));
  CHECK_THAT(complaint(folder.write("none.jsonl.zst", "")), ContainsSubstring("none.jsonl.zst: the file is cut short"));
  auto flipped = bytes;
  flipped[bytes.size() / 2] ^= 4;
  CHECK_THAT(complaint(folder.write("bad.jsonl.zst", flipped)), ContainsSubstring("bad.jsonl.zst"));
  gzFile gzip = gzopen((folder / "x.txt.gz").c_str(), "wb");
  gzwrite(gzip, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(gzip);
  const auto packed = file_bytes(folder / "x.txt.gz");
  CHECK_THAT(complaint(folder.write("y.txt.gz", packed.substr(0, packed.size() - 9))),
             ContainsSubstring("y.txt.gz: the file is cut short"));
}

TEST_CASE("text: UTF-8 is what RFC 3629 says") {
  for (const char* good : {"", "a", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                           "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    CHECK(!invalid_utf8(good));
  for (const char* bad : {"\x80", "\xc3\xc3", "\xc0\x80",
                          "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe2\x82",
                          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"})
    CHECK(invalid_utf8(std::string("ab") + bad) == 2);
}
