#include "adder/core/error.h"
#include "adder/data/token_shard.h"
#include "adder/data/tokenize.h"
#include "adder/tests/temporary_folder.h"

#include "catch.h"

#include <fmt/core.h>

#include <set>

using namespace adder;

namespace {
std::set<std::string> texts_of(const std::string& path) {
  const TokenShard shard(path, ByteTokenizer().name());
  std::set<std::string> texts;
  for (int64_t d = 0; d < shard.documents(); ++d) {
    std::vector<int32_t> tokens(static_cast<size_t>(shard.end(d) - shard.begin(d)));
    shard.read(shard.begin(d), tokens);
    CHECK(tokens.back() == 256);
    texts.insert(ByteTokenizer().decode(tokens));
    CHECK(shard.text_bytes(d) == static_cast<int64_t>(tokens.size()) - 1);
  }
  return texts;
}
}  // namespace

TEST_CASE("tokenizer: every byte comes back and a token outside the vocabulary is refused") {
  const ByteTokenizer tokenizer;
  std::string bytes;
  for (int b = 0; b < 256; ++b) bytes.push_back(static_cast<char>(b));
  auto tokens = tokenizer.encode(bytes);
  REQUIRE(tokens.size() == 256);
  for (int32_t b = 0; b < 256; ++b) CHECK(tokens[static_cast<size_t>(b)] == b);
  tokens.push_back(tokenizer.end_of_document());
  CHECK(tokenizer.decode(tokens) == bytes);
  tokens.push_back(257);
  REQUIRE_THROWS_WITH(tokenizer.decode(tokens), ContainsSubstring("token 257 is outside 0..256"));
}

TEST_CASE("tokenize: the split covers every document and does not depend on their order") {
  const TemporaryFolder folder;
  std::vector<std::string> lines;
  std::set<std::string> texts;
  for (int i = 0; i < 2000; ++i) {
    texts.insert("document " + std::to_string(i));
    lines.push_back("{\"text\":\"document " + std::to_string(i) + "\"}\n");
  }
  std::string forward, backward;
  for (const auto& line : lines) {
    forward += line;
    backward = line + backward;
  }
  const auto report = tokenize({folder.write("f.jsonl", forward)}, folder / "ft.h5", folder / "fv.h5");
  tokenize({folder.write("b.jsonl", backward)}, folder / "bt.h5", folder / "bv.h5");
  const auto train = texts_of(folder / "ft.h5"), validation = texts_of(folder / "fv.h5");
  CHECK(train == texts_of(folder / "bt.h5"));
  CHECK(validation == texts_of(folder / "bv.h5"));
  auto both = train;
  both.insert(validation.begin(), validation.end());
  CHECK(both == texts);
  CHECK(train.size() + validation.size() == 2000);
  CHECK(report.train_documents == static_cast<int64_t>(train.size()));
  CHECK(std::abs(report.validation_documents - 100) < 49);  // 5 standard deviations of 2000 draws of 5 %
}

TEST_CASE("tokenize: every source that is large enough has a document to validate with") {
  const TemporaryFolder folder;
  std::string text;
  for (int source = 0; source < 30; ++source)
    for (int i = 0; i < (source < 20 ? 12 : 1); ++i)
      text += fmt::format(R"({{"text":"document {} of {}","meta":{{"pile_set_name":"{}"}}}})", i, source, source) + "\n";
  const auto report = tokenize({folder.write("x.jsonl", text)}, folder / "t.h5", folder / "v.h5", {.validation = 0.1});
  const TokenShard shard(folder / "v.h5", ByteTokenizer().name());
  std::set<std::string> sources(shard.sources().begin(), shard.sources().end());
  for (int source = 0; source < 20; ++source) CHECK(sources.contains(std::to_string(source)));
  CHECK(report.validation_documents < 60);  // 12 documents, of which a tenth or one
}

TEST_CASE("tokenize: few documents still give one to validate with, a single one is refused") {
  const TemporaryFolder folder;
  const auto text = folder.write("x.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}\n");
  const auto report = tokenize({text}, folder / "t.h5", folder / "v.h5", {.validation = 1e-9});
  CHECK(report.train_documents == 2);
  CHECK(report.validation_documents == 1);
  const auto one = folder.write("one.jsonl", "{\"text\":\"a\"}\n");
  REQUIRE_THROWS_WITH(tokenize({one}, folder / "t1.h5", folder / "v1.h5"),
                      ContainsSubstring("1 documents of text: at least two"));
  CHECK(!std::filesystem::exists(folder / "t1.h5"));
}
