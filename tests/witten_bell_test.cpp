#include "adder/core/error.h"
#include "adder/core/random.h"
#include "adder/data/token_shard.h"
#include "adder/data/witten_bell.h"

#include "catch.h"
#include "adder/tests/temporary_folder.h"

#include <cmath>
#include <map>

using namespace adder;

namespace {
/// Documents of few symbols, so that long contexts repeat.
std::vector<int32_t> random_documents(uint64_t seed, int64_t count, int32_t symbols) {
  const Random random(seed, "documents");
  std::vector<int32_t> documents;
  for (int64_t i = 0; i + 1 < count; ++i) {
    const auto bits = random.bits(static_cast<uint64_t>(i));
    documents.push_back(bits % 23 == 0 ? 256 : static_cast<int32_t>((bits >> 8) % static_cast<uint64_t>(symbols)));
  }
  documents.push_back(256);
  return documents;
}

/// The formula itself, with maps.
double by_maps(const std::vector<int32_t>& train, std::vector<int32_t> context, int32_t symbol, int order) {
  double p = 1.0 / 257;
  for (size_t k = 0; k <= static_cast<size_t>(order); ++k) {
    std::map<int32_t, int> counts;
    int total = 0;
    std::vector<int32_t> past(static_cast<size_t>(order), 256);
    for (const int32_t next : train) {
      if (std::equal(past.end() - static_cast<std::ptrdiff_t>(k), past.end(),
                     context.end() - static_cast<std::ptrdiff_t>(k))) {
        ++counts[next];
        ++total;
      }
      past.push_back(next);
      if (next == 256) past.assign(static_cast<size_t>(order), 256);
    }
    const auto types = static_cast<double>(counts.size());
    if (total > 0) p = (counts[symbol] + types * p) / (total + types);
  }
  return p;
}
}  // namespace

TEST_CASE("witten-bell: a model of three symbols by hand") {
  // One document "a": order 0 saw a once and the end once, order 1 a after the start and the end after a.
  const std::vector<int32_t> train{'a', 256};
  const WittenBell model(train, {.order = 1});
  const double u = 1.0 / 257, a0 = (1 + 2 * u) / 4, b0 = 2 * u / 4;
  const std::vector<int32_t> start, after_a{'a'}, after_b{'b'};
  CHECK(model.probability(start, 'a') == Approx((1 + a0) / 2).epsilon(1e-14));
  CHECK(model.probability(start, 'b') == Approx(b0 / 2).epsilon(1e-14));
  CHECK(model.probability(after_a, 256) == Approx((1 + a0) / 2).epsilon(1e-14));
  CHECK(model.probability(after_a, 'a') == Approx(a0 / 2).epsilon(1e-14));
  CHECK(model.probability(after_b, 'a') == Approx(a0).epsilon(1e-14));  // b was never seen: order 0
  CHECK(model.nats(train) == Approx(-2 * std::log((1 + a0) / 2)).epsilon(1e-14));
}

TEST_CASE("witten-bell: the probabilities of all symbols sum to one after any context") {
  const auto train = random_documents(1, 5000, 7);
  const WittenBell model(train, {});
  for (size_t length = 0; length < 9; ++length)
    for (size_t at = 0; at < 40; ++at) {
      std::vector<int32_t> context(train.begin() + static_cast<std::ptrdiff_t>(at),
                                   train.begin() + static_cast<std::ptrdiff_t>(at + length));
      if (at % 3 == 0 && length > 0) context[length / 2] = 'z';  // never seen
      double sum = 0;
      for (int32_t symbol = 0; symbol < 257; ++symbol) sum += model.probability(context, symbol);
      CHECK(sum == Approx(1).epsilon(1e-12));  // 257 roundings
    }
}

TEST_CASE("witten-bell: sorted arrays equal the formula, over documents and contexts of every length") {
  const auto train = random_documents(2, 400, 3), test = random_documents(3, 60, 4);
  const WittenBell model(train, {.order = 3});
  double nats = 0;
  std::vector<int32_t> past(3, 256);
  for (const int32_t next : test) {
    nats -= std::log(by_maps(train, past, next, 3));
    past.push_back(next);
    if (next == 256) past.assign(3, 256);
  }
  CHECK(model.nats(test) == Approx(nats).epsilon(1e-13));
}

TEST_CASE("witten-bell: counting in blocks is counting at once, and shards give bits per byte") {
  const TemporaryFolder folder;
  const auto train = random_documents(4, 3000, 5), test = random_documents(5, 500, 5);
  const auto write = [&](const std::string& name, const std::vector<int32_t>& documents) {
    TokenShardWriter writer(folder / name, {"tok", 257, 256});
    for (auto from = documents.begin(); from != documents.end();) {
      const auto end = std::find(from, documents.end(), 256);
      writer.add(std::vector<int32_t>(from, end), "A", end - from);
      from = end + 1;
    }
    writer.finish();
    return TokenShard(folder / name);
  };
  const WittenBell whole(train, {});
  size_t at = 0;
  const WittenBell blocks(
      [&] {
        const auto from = train.begin() + static_cast<std::ptrdiff_t>(at);
        auto end = from;
        for (int documents = 0; documents < 7 && end != train.end(); ++documents)
          end = std::find(end, train.end(), 256) + 1;
        at = static_cast<size_t>(end - train.begin());
        return std::span<const int32_t>(from, end);
      },
      {});
  CHECK(blocks.nats(test) == whole.nats(test));
  const auto validation = write("v.h5", test);
  CHECK(witten_bell_bits_per_byte(write("t.h5", train), validation) ==
        Approx(whole.nats(test) / std::log(2.0) / static_cast<double>(validation.text_bytes())).epsilon(1e-13));
}

TEST_CASE("witten-bell: symbols outside the vocabulary and orders that do not fit are refused") {
  const std::vector<int32_t> bad{257, 256}, good{256};
  REQUIRE_THROWS_WITH(WittenBell(bad, {}), ContainsSubstring("symbol 257 is outside 0..256"));
  REQUIRE_THROWS_WITH(WittenBell(good, {.order = 7}), ContainsSubstring("order 7 over a vocabulary of 257"));
}
