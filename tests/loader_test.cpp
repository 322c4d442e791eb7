#include "adder/core/error.h"
#include "adder/data/loader.h"
#include "adder/data/permutation.h"

#include "catch.h"
#include "adder/tests/temporary_folder.h"

#include <map>
#include <set>

using namespace adder;

namespace {
constexpr int32_t end_token = 999'999;

/// Tokens are their own place in the shard, so that a window shows where it was cut; every document's end is end_token.
std::string write_shard(const std::string& path, const std::vector<int64_t>& lengths) {
  TokenShardWriter writer(path, {"tok", 1'000'000, end_token});
  int32_t place = 0;
  for (size_t d = 0; d < lengths.size(); ++d) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < lengths[d]; ++i) tokens.push_back(place++);
    ++place;
    writer.add(tokens, d % 3 == 1 ? "B" : d % 7 == 5 ? "C" : "A", lengths[d] + 100);
  }
  writer.finish();
  return path;
}

std::vector<int64_t> lengths(int64_t documents) {
  std::vector<int64_t> list;
  for (int64_t d = 0; d < documents; ++d) list.push_back(d * d * 13 % 41 + (d % 10 == 0 ? 200 : 0));
  return list;
}

std::vector<int32_t> values(const Tensor& t) { return {t.data<int32_t>(), t.data<int32_t>() + t.count()}; }

/// The shard's tokens, ends included.
std::vector<int32_t> stream(const TokenShard& shard) {
  std::vector<int32_t> tokens(static_cast<size_t>(shard.tokens()));
  shard.read(0, tokens);
  return tokens;
}
}  // namespace

TEST_CASE("loader: the permutation is a bijection for every size and differs by number") {
  const Random random(3, "test");
  for (const int64_t size : {1, 2, 3, 4, 5, 31, 64, 65, 1000, 4097}) {
    const Permutation order(size, random, 7), other(size, random, 8);
    std::set<int64_t> seen;
    int64_t equal = 0, fixed = 0;
    for (int64_t i = 0; i < size; ++i) {
      REQUIRE(order(i) >= 0);
      REQUIRE(order(i) < size);
      seen.insert(order(i));
      equal += order(i) == other(i);
      fixed += order(i) == i;
    }
    CHECK(static_cast<int64_t>(seen.size()) == size);
    if (size >= 1000) CHECK(equal + fixed < 20);  // one each is expected
  }
}

TEST_CASE("loader: a sample is a window of the ring, a position belongs to the document of its target") {
  const TemporaryFolder folder;
  const TokenFile file(write_shard(folder / "t.h5", lengths(60)), {.batch = 4, .micro_batch = 4, .time = 50});
  const auto tokens = stream(file.shard());
  const auto size = static_cast<int64_t>(tokens.size());
  const auto batch = file.samples(0, 3 * file.samples_per_epoch());
  CHECK(batch.counted == batch.targets.count());
  const auto inputs = values(batch.tokens), targets = values(batch.targets), document = values(batch.document);
  for (int64_t row = 0; row < batch.tokens.size(0); ++row) {
    const auto at = [&](int64_t t) { return static_cast<size_t>(row * 50 + t); };
    int64_t plain = 0;  // a position whose target shows its place
    while (targets[at(plain)] == end_token) ++plain;
    const int64_t start = (targets[at(plain)] - plain + size) % size;
    for (int64_t t = 0; t < 50; ++t) {
      const int64_t place = (start + t) % size;
      REQUIRE(targets[at(t)] == tokens[static_cast<size_t>(place)]);
      REQUIRE(inputs[at(t)] == tokens[static_cast<size_t>((place + size - 1) % size)]);
      if (t == 0) continue;
      const bool new_document = inputs[at(t)] == end_token;
      REQUIRE((document[at(t)] != document[at(t - 1)]) == new_document);
    }
  }
}

TEST_CASE("loader: an epoch counts no token twice and all but less than one window") {
  const TemporaryFolder folder;
  const TokenFile file(write_shard(folder / "t.h5", {700, 0, 3, 299}), {.batch = 1, .micro_batch = 1, .time = 64});
  CHECK(file.samples_per_epoch() == 1006 / 64);
  std::set<std::vector<int32_t>> first_targets;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    std::map<int32_t, int> seen;
    const auto targets = values(file.samples(epoch * file.samples_per_epoch(), file.samples_per_epoch()).targets);
    for (const int32_t target : targets) ++seen[target];
    CHECK(static_cast<int64_t>(targets.size()) > 1006 - 64);
    for (const auto& [token, count] : seen) REQUIRE(count <= (token == end_token ? 4 : 1));
    first_targets.insert({targets.begin(), targets.begin() + 64});
  }
  CHECK(first_targets.size() == 4);  // every epoch in another order
}

TEST_CASE("loader: a step's samples do not depend on ranks and micro-batches") {
  const TemporaryFolder folder;
  const auto path = write_shard(folder / "t.h5", lengths(40));
  TokenFile one(path, {.batch = 12, .micro_batch = 12, .time = 16, .seed = 5});
  for (int step = 0; step < 9; ++step) {
    const auto whole = one.next();
    REQUIRE(whole.size() == 1);
    std::vector<int32_t> tokens, targets;
    for (const int64_t rank : {0, 1, 2}) {
      TokenFile part(path, {.batch = 12, .micro_batch = 2, .time = 16, .seed = 5, .rank = rank, .ranks = 3});
      part.seek(step * 12);
      CHECK(part.step() == step);
      for (const auto& batch : part.next()) {
        const auto more = values(batch.tokens), more_targets = values(batch.targets);
        tokens.insert(tokens.end(), more.begin(), more.end());
        targets.insert(targets.end(), more_targets.begin(), more_targets.end());
      }
      CHECK(part.consumed_samples() == (step + 1) * 12);
    }
    CHECK(tokens == values(whole[0].tokens));
    CHECK(targets == values(whole[0].targets));
  }
}

TEST_CASE("loader: held-out batches count every target once, in rows of one source, with exact text bytes") {
  const TemporaryFolder folder;
  const auto path = write_shard(folder / "t.h5", lengths(60));
  for (const int64_t context : {0, 1, 9, 31}) {
    const HeldOut held_out(path, {.batch = 5, .time = 32, .context = context});
    const auto tokens = stream(held_out.shard());
    std::map<int32_t, int> seen;
    int64_t counted = 0;
    for (int64_t i = 0; i < held_out.batches(); ++i) {
      const auto batch = held_out.batch(i);
      const auto inputs = values(batch.tokens), targets = values(batch.targets), document = values(batch.document);
      int64_t here = 0;
      for (size_t j = 0; j < targets.size(); ++j) {
        if (targets[j] < 0) continue;
        ++here;
        ++seen[targets[j]];
        if (targets[j] == end_token) continue;
        const auto d = held_out.shard().document_of(targets[j]);
        REQUIRE(held_out.shard().source(d) == batch.source);
        REQUIRE(inputs[j] == (targets[j] == held_out.shard().begin(d) ? end_token : targets[j] - 1));
        if (j % 32 > 0) REQUIRE((document[j] != document[j - 1]) == (inputs[j] == end_token));
      }
      REQUIRE(here == batch.counted);
      counted += here;
    }
    CHECK(counted == held_out.shard().tokens());
    CHECK(held_out.targets() == counted);
    for (const auto& [token, count] : seen) REQUIRE(count == (token == end_token ? 60 : 1));
    CHECK(seen.size() == tokens.size() - 60 + 1);
    CHECK(held_out.text_bytes() == held_out.shard().text_bytes());
    CHECK(held_out.text_bytes(0) + held_out.text_bytes(1) + held_out.text_bytes(2) == held_out.text_bytes());
  }
}

TEST_CASE("loader: a part of the held-out text is whole documents, about as many tokens as wanted, always the same") {
  const TemporaryFolder folder;
  const auto path = write_shard(folder / "t.h5", lengths(60));
  const HeldOutOptions options{.batch = 5, .time = 32, .tokens = 700};
  const HeldOut part(path, options), again(path, options), all(path, {.time = 32});
  CHECK(part.targets() >= 700);
  CHECK(part.targets() < 700 + 242);  // the longest document
  CHECK(all.targets() > 2000);
  CHECK(values(part.batch(0).targets) == values(again.batch(0).targets));
  CHECK(part.text_bytes() < all.text_bytes());
}

TEST_CASE("loader: bad options are refused with their numbers") {
  const TemporaryFolder folder;
  const auto path = write_shard(folder / "t.h5", {20});
  REQUIRE_THROWS_WITH(TokenFile(path, {.batch = 10, .micro_batch = 4, .time = 8}),
                      ContainsSubstring("a batch of 10 cannot be cut into micro-batches of 4 on 1 ranks"));
  REQUIRE_THROWS_WITH(TokenFile(path, {.batch = 1, .micro_batch = 1, .time = 22}),
                      ContainsSubstring("21 tokens are fewer than one sample of 22"));
  REQUIRE_THROWS_WITH(TokenFile(path, {.batch = 1, .micro_batch = 1, .time = 8, .rank = 2, .ranks = 2}),
                      ContainsSubstring("rank 2 of 2"));
  REQUIRE_THROWS_WITH(TokenFile(path, {.batch = 1, .micro_batch = 1, .time = 8, .tokenizer = "other"}),
                      ContainsSubstring("\"other\" is wanted"));
  REQUIRE_THROWS_WITH(HeldOut(path, {.time = 8, .context = 8}), ContainsSubstring("time 8, context 8"));
}
