#include "adder/core/error.h"
#include "adder/data/seal.h"
#include "adder/data/token_shard.h"

#include "catch.h"
#include "adder/tests/temporary_folder.h"

#include <fcntl.h>
#include <hdf5.h>

#include <numeric>

using namespace adder;

namespace {
std::vector<int32_t> tokens_of(int64_t document, int64_t vocabulary) {
  std::vector<int32_t> tokens(static_cast<size_t>(document * document % 97));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>((document * 7919 + static_cast<int64_t>(i) * 31) % (vocabulary - 1));
  return tokens;
}

std::string write_shard(const std::string& path, int64_t documents, int64_t vocabulary = 257) {
  std::filesystem::remove(path);
  TokenShardWriter writer(path, {"tok", vocabulary, static_cast<int32_t>(vocabulary - 1)});
  for (int64_t d = 0; d < documents; ++d) writer.add(tokens_of(d, vocabulary), d % 3 ? "A" : "B", 10 * d);
  CHECK(!std::filesystem::exists(path));
  writer.finish();
  return path;
}

std::vector<int32_t> all_tokens(const TokenShard& shard) {
  std::vector<int32_t> tokens(static_cast<size_t>(shard.tokens()));
  shard.read(0, tokens);
  return tokens;
}

std::string complaint(const std::string& path, const std::string& tokenizer = "") {
  try {
    TokenShard(path, tokenizer).verify();
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}
}  // namespace

TEST_CASE("token shard: what is written is read, in 16 and in 32 bits") {
  const TemporaryFolder folder;
  for (const int64_t vocabulary : {257, 65536, 65537, 128256}) {
    const TokenShard shard(write_shard(folder / "t.h5", 50, vocabulary), "tok");
    shard.verify();
    CHECK(shard.documents() == 50);
    CHECK(shard.info().vocabulary == vocabulary);
    CHECK(shard.sources() == std::vector<std::string>{"B", "A"});
    CHECK(shard.text_bytes() == 10 * 49 * 50 / 2);
    for (int64_t d = 0; d < 50; ++d) {
      auto expected = tokens_of(d, vocabulary);
      expected.push_back(static_cast<int32_t>(vocabulary - 1));
      std::vector<int32_t> read(static_cast<size_t>(shard.end(d) - shard.begin(d)));
      shard.read(shard.begin(d), read);
      CHECK(read == expected);
      CHECK(shard.source(d) == (d % 3 ? 1 : 0));
      CHECK(shard.text_bytes(d) == 10 * d);
      CHECK(shard.document_of(shard.begin(d)) == d);
      CHECK(shard.document_of(shard.end(d) - 1) == d);
    }
  }
}

TEST_CASE("token shard: a shard of several checksum blocks verifies, and a flipped token is found in its block") {
  const TemporaryFolder folder;
  const auto path = folder / "t.h5";
  TokenShardWriter writer(path, {"tok", 257, 256});
  const std::vector<int32_t> tokens(700'001, 171);
  writer.add(tokens, "A", 700'001);
  writer.add(tokens, "A", 700'001);
  writer.finish();
  REQUIRE(complaint(path) == "none");
  auto bytes = file_bytes(path);
  const auto place = bytes.find(std::string("\xab\0\xab\0\xab\0\xab\0", 8));
  REQUIRE(place != std::string::npos);
  bytes[place + 2 * 1'048'576 + 10] ^= 1;
  CHECK_THAT(complaint(folder.write("bad.h5", bytes)), ContainsSubstring("bad.h5: damaged: block 2 of /tokens"));
}

TEST_CASE("token shard: a damaged block is found when it is first read, and no other block is in the way") {
  const TemporaryFolder folder;
  TokenShardWriter writer(folder / "t.h5", {"tok", 257, 256});
  writer.add(std::vector<int32_t>(1'400'001, 171), "A", 1);
  writer.finish();
  auto bytes = file_bytes(folder / "t.h5");
  const auto place = bytes.find(std::string("\xab\0\xab\0\xab\0\xab\0", 8));
  REQUIRE(place != std::string::npos);
  bytes[place + 1'048'576 + 10] ^= 1;
  const TokenShard shard(folder.write("bad.h5", bytes));
  std::vector<int32_t> to(100);
  shard.read(0, to);
  shard.read(1'048'576, to);  // block 2
  CHECK_THROWS_WITH(shard.read(524'288 - 50, to), ContainsSubstring("bad.h5: damaged: block 1 of /tokens"));
  CHECK_THROWS_WITH(shard.read(1'000'000, to), ContainsSubstring("bad.h5: damaged: block 1 of /tokens"));
}

TEST_CASE("token shard: every flipped byte is refused by name, before its tokens are used") {
  const TemporaryFolder folder;
  write_shard(folder / "t.h5", 12);
  const auto bytes = file_bytes(folder / "t.h5");
  for (size_t i = 0; i < bytes.size(); i += 7) {
    auto flipped = bytes;
    flipped[i] = static_cast<char>(flipped[i] ^ (1 << i / 7 % 8));
    const auto path = folder.write("bad.h5", flipped);
    INFO("byte " << i << ", bit " << i / 7 % 8);
    REQUIRE_THROWS_WITH(all_tokens(TokenShard(path, "tok")), ContainsSubstring("bad.h5"));
  }
}

TEST_CASE("token shard: cut and foreign files are refused by name") {
  const TemporaryFolder folder;
  const auto path = write_shard(folder / "t.h5", 300);
  const auto bytes = file_bytes(path);
  for (const size_t left : {size_t{600}, bytes.size() / 10, bytes.size() / 2, bytes.size() - 100, bytes.size() - 1})
    CHECK_THAT(complaint(folder.write("cut.h5", bytes.substr(0, left))), ContainsSubstring("cut.h5: cut short"));
  CHECK_THAT(complaint(folder.write("cut.h5", bytes.substr(0, 500))), ContainsSubstring("first bytes are damaged"));
  CHECK_THAT(complaint(folder.write("long.h5", bytes + "x")), ContainsSubstring("long.h5: damaged"));
  CHECK_THAT(complaint(folder / "no.h5"), ContainsSubstring("no.h5: cannot be read (No such file"));
  for (const std::string other : {"", "hello"})
    CHECK_THAT(complaint(folder.write("x.h5", other)), ContainsSubstring("x.h5: is no adder token shard"));
  CHECK_THAT(complaint(path, "gpt2"), ContainsSubstring("written by the tokenizer \"tok\", but \"gpt2\" is wanted"));
  H5Fclose(H5Fcreate((folder / "other.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  CHECK_THAT(complaint(folder / "other.h5"), ContainsSubstring("other.h5: is no adder token shard"));
  CHECK_THAT(complaint(folder.write("new.h5", "adder token shard 3" + bytes.substr(19))),
             ContainsSubstring("new.h5: adder token shard of format 3, this program reads format 2"));
}

TEST_CASE("token shard: a whole file whose counts do not match is refused") {
  const TemporaryFolder folder;
  const auto set = [&](const char* name, int64_t value) {
    const auto path = write_shard(folder / "t.h5", 20);
    const auto descriptor = open(path.c_str(), O_RDONLY);
    const Seal seal = check_seal(descriptor, path, "adder token shard 2");
    close(descriptor);
    const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), attribute = H5Aopen(file, name, H5P_DEFAULT);
    H5Awrite(attribute, H5T_NATIVE_INT64, &value);
    H5Aclose(attribute);
    H5Fclose(file);
    write_seal(path, "adder token shard 2", seal.begin, seal.end);
    return complaint(path);
  };
  CHECK(set("tokens", 744) == "none");
  CHECK_THAT(set("tokens", 9), ContainsSubstring("9 tokens and 20 documents by its attributes"));
  CHECK_THAT(set("documents", 9), ContainsSubstring("and 9 documents by its attributes"));
  CHECK_THAT(set("vocabulary", 70'000), ContainsSubstring("/tokens is not contiguous uint32"));
  CHECK_THAT(set("end_of_document", 300), ContainsSubstring("the end of a document is token 300 of 257"));
}

TEST_CASE("token shard: a second writer of the same path is refused and the first goes on") {
  const TemporaryFolder folder;
  {
    TokenShardWriter first(folder / "t.h5", {"tok", 257, 256});
    CHECK_THROWS_WITH(TokenShardWriter(folder / "t.h5", {"tok", 257, 256}),
                      ContainsSubstring("t.h5: another program is writing it"));
    first.add(tokens_of(5, 257), "A", 1);
    first.finish();
  }
  CHECK(complaint(folder / "t.h5") == "none");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("token shard: a writer that does not finish leaves nothing and keeps the old shard") {
  const TemporaryFolder folder;
  write_shard(folder / "t.h5", 20);
  const auto before = file_bytes(folder / "t.h5");
  {
    TokenShardWriter writer(folder / "t.h5", {"tok", 257, 256});
    writer.add(tokens_of(5, 257), "A", 1);
  }
  CHECK(file_bytes(folder / "t.h5") == before);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("token shard: bad tokens, too many sources, no documents and reads outside are refused") {
  const TemporaryFolder folder;
  TokenShardWriter writer(folder / "t.h5", {"tok", 257, 256});
  REQUIRE_THROWS_WITH(writer.finish(), ContainsSubstring("no documents to write"));
  const std::vector<int32_t> good{1}, bad{257};
  REQUIRE_THROWS_WITH(writer.add(bad, "A", 1), ContainsSubstring("token 257 is outside the vocabulary of 257"));
  for (int i = 0; i < 256; ++i) writer.add(good, std::to_string(i), 1);
  REQUIRE_THROWS_WITH(writer.add(good, "256", 1), ContainsSubstring("more than 256 sources"));
  writer.finish();
  const TokenShard shard(folder / "t.h5");
  std::vector<int32_t> to(10);
  REQUIRE_THROWS_WITH(shard.read(shard.tokens() - 9, to), ContainsSubstring("tokens 503 to 513 of 512"));
  REQUIRE_THROWS_WITH(shard.read(-1, to), ContainsSubstring("tokens -1 to 9 of 512"));
}
