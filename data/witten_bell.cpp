#include "adder/data/witten_bell.h"

#include "adder/core/error.h"
#include "adder/data/token_shard.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <utility>

namespace adder {

namespace {

constexpr int64_t block_tokens = int64_t{1} << 24;

struct Runs {  // equal keys with their number
  std::vector<uint64_t> keys;
  std::vector<uint64_t> counts;

  void add(uint64_t key, uint64_t count) {
    if (!keys.empty() && keys.back() == key) {
      counts.back() += count;
    } else {
      keys.push_back(key);
      counts.push_back(count);
    }
  }
};

Runs merge(const Runs& a, const Runs& b) {
  Runs both;
  both.keys.reserve(a.keys.size() + b.keys.size());
  both.counts.reserve(a.keys.size() + b.keys.size());
  for (size_t i = 0, j = 0; i < a.keys.size() || j < b.keys.size();) {
    const bool first = j == b.keys.size() || (i < a.keys.size() && a.keys[i] <= b.keys[j]);
    if (first) {
      both.add(a.keys[i], a.counts[i]);
      ++i;
    } else {
      both.add(b.keys[j], b.counts[j]);
      ++j;
    }
  }
  return both;
}

/// The counts of the next lower order: the oldest symbol, the highest bits, falls away.
Runs shorten(const Runs& runs, uint64_t kept) {
  std::vector<std::pair<uint64_t, uint64_t>> pairs(runs.keys.size());
  for (size_t i = 0; i < pairs.size(); ++i) pairs[i] = {runs.keys[i] & kept, runs.counts[i]};
  std::sort(pairs.begin(), pairs.end());
  Runs shorter;
  for (const auto& [key, count] : pairs) shorter.add(key, count);
  return shorter;
}

WittenBell::Blocks once(std::span<const int32_t> documents) {
  return [documents, given = false]() mutable {
    return std::exchange(given, true) ? std::span<const int32_t>() : documents;
  };
}

/// Whole documents of a shard, about block_tokens at a time.
WittenBell::Blocks blocks_of(const TokenShard& shard) {
  return [&shard, document = int64_t{0}, held = std::vector<int32_t>()]() mutable {
    const int64_t first = document;
    if (first == shard.documents()) return std::span<const int32_t>();
    do ++document;
    while (document < shard.documents() && shard.end(document) - shard.begin(first) <= block_tokens);
    held.resize(static_cast<size_t>(shard.end(document - 1) - shard.begin(first)));
    shard.read(shard.begin(first), held);
    return std::span<const int32_t>(held);
  };
}

}  // namespace

/// Calls visit(context, symbol) for every symbol; the context holds the last `order` symbols, the newest lowest.
template <class Visit>
void WittenBell::walk(std::span<const int32_t> documents, const Visit& visit) const {
  const uint64_t mask = (uint64_t{1} << (bits_ * options_.order)) - 1;
  uint64_t start = 0;
  for (int i = 0; i < options_.order; ++i) start = start << bits_ | static_cast<uint64_t>(options_.end);
  uint64_t context = start;
  for (const int32_t symbol : documents) {
    visit(context, symbol);
    context = symbol == options_.end ? start : (context << bits_ | static_cast<uint64_t>(symbol)) & mask;
  }
}

WittenBell::WittenBell(std::span<const int32_t> documents, const Options& options)
    : WittenBell(once(documents), options) {}

WittenBell::WittenBell(const Blocks& next, const Options& options)
    : options_(options), bits_(std::bit_width(static_cast<uint64_t>(options.vocabulary - 1))) {
  check(options.order >= 0 && bits_ * (options.order + 1) < 64,
        "WittenBell: order {} over a vocabulary of {} does not fit into 64 bits", options.order, options.vocabulary);
  Runs runs;
  for (auto block = next(); !block.empty(); block = next()) {
    std::vector<uint64_t> keys;
    keys.reserve(block.size());
    walk(block, [&](uint64_t context, int32_t symbol) {
      check(symbol >= 0 && symbol < options_.vocabulary, "WittenBell: symbol {} is outside 0..{}", symbol,
            options_.vocabulary - 1);
      keys.push_back(context << bits_ | static_cast<uint64_t>(symbol));
    });
    std::sort(keys.begin(), keys.end());
    Runs sorted;
    for (const uint64_t key : keys) sorted.add(key, 1);
    runs = runs.keys.empty() ? std::move(sorted) : merge(runs, sorted);
  }
  orders_.resize(static_cast<size_t>(options.order) + 1);
  for (int k = options.order; k >= 0; --k) {
    auto shorter = k > 0 ? shorten(runs, (uint64_t{1} << (bits_ * k)) - 1) : Runs();
    auto& [keys, before] = orders_[static_cast<size_t>(k)];
    keys = std::move(runs.keys);
    before.assign(1, 0);
    before.reserve(keys.size() + 1);
    for (const uint64_t count : runs.counts) before.push_back(before.back() + count);
    runs = std::move(shorter);
  }
}

double WittenBell::probability(uint64_t context, int32_t symbol) const {
  double p = 1.0 / static_cast<double>(options_.vocabulary);
  for (size_t k = 0; k < orders_.size(); ++k) {
    const auto& [keys, before] = orders_[k];
    const uint64_t seen = context & ((uint64_t{1} << (bits_ * static_cast<int>(k))) - 1), key = seen << bits_;
    const auto first = std::lower_bound(keys.begin(), keys.end(), key);
    const auto last = std::lower_bound(first, keys.end(), key + (uint64_t{1} << bits_));
    if (first == last) break;  // longer contexts are unseen too
    const auto at = std::lower_bound(first, last, key | static_cast<uint64_t>(symbol));
    const auto sum = [&](auto from, auto to) {
      return static_cast<double>(before[static_cast<size_t>(to - keys.begin())] -
                                 before[static_cast<size_t>(from - keys.begin())]);
    };
    const bool found = at != last && *at == (key | static_cast<uint64_t>(symbol));
    const double count = found ? sum(at, at + 1) : 0, different = static_cast<double>(last - first);
    p = (count + different * p) / (sum(first, last) + different);
  }
  return p;
}

double WittenBell::probability(std::span<const int32_t> context, int32_t symbol) const {
  uint64_t packed = 0;
  const auto order = static_cast<size_t>(options_.order);
  for (size_t i = 0; i < order; ++i) {
    const bool inside = i + context.size() >= order;
    packed = packed << bits_ | static_cast<uint64_t>(inside ? context[i + context.size() - order] : options_.end);
  }
  return probability(packed, symbol);
}

double WittenBell::nats(std::span<const int32_t> documents) const {
  double sum = 0;
  walk(documents, [&](uint64_t context, int32_t symbol) { sum -= std::log(probability(context, symbol)); });
  return sum;
}

double witten_bell_bits_per_byte(const TokenShard& train, const TokenShard& validation, int order) {
  const auto& info = train.info();
  const WittenBell model(blocks_of(train), {order, info.vocabulary, info.end_of_document});
  double nats = 0;
  const auto next = blocks_of(validation);
  for (auto block = next(); !block.empty(); block = next()) nats += model.nats(block);
  return nats / std::numbers::ln2 / static_cast<double>(validation.text_bytes());
}

}  // namespace adder
