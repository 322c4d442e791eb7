#include "adder/autograd/gradient_check.h"
#include "adder/core/error.h"
#include "adder/layers/sampler.h"

#include "catch.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

using namespace adder;
using layers::Sampler;
using layers::SamplerOptions;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Logits of these probabilities, or of any weights.
std::vector<double> logits_of(std::vector<double> weights) {
  for (double& w : weights) w = std::log(w) + 3;  // a constant added to all changes nothing
  return weights;
}

std::vector<double> filtered(const std::vector<double>& weights, const SamplerOptions& o) {
  return Sampler(o).probabilities(logits_of(weights));
}

// Whether each p is `weights`, normalised. A few roundings of log and exp.
bool near(const std::vector<double>& p, const std::vector<double>& weights) {
  double sum = 0;
  for (double w : weights) sum += w;
  bool good = p.size() == weights.size();
  for (size_t i = 0; good && i < p.size(); ++i) good = std::abs(p[i] - weights[i] / sum) < 1e-14;
  return good;
}

const std::vector<double> weights = {0.1, 0.4, 0.05, 0.25, 0.2};

}  // namespace

TEST_CASE("sampler: without filters the softmax, and a temperature is a power of it") {
  CHECK(near(filtered(weights, {}), weights));
  CHECK(near(filtered(weights, {.temperature = 0.5}), {0.01, 0.16, 0.0025, 0.0625, 0.04}));
  std::vector<double> roots = weights;
  for (double& w : roots) w = std::sqrt(w);
  CHECK(near(filtered(weights, {.temperature = 2}), roots));
  CHECK(near(filtered(weights, {.temperature = 1e-300}), {0, 1, 0, 0, 0}));  // no overflow
}

TEST_CASE("sampler: each filter keeps what its rule says") {
  CHECK(near(filtered(weights, {.top_k = 1}), {0, 1, 0, 0, 0}));
  CHECK(near(filtered(weights, {.top_k = 3}), {0, 0.4, 0, 0.25, 0.2}));
  CHECK(near(filtered(weights, {.top_k = 99}), weights));
  CHECK(near(filtered(weights, {.top_p = 1e-9}), {0, 1, 0, 0, 0}));      // never nothing
  CHECK(near(filtered(weights, {.top_p = 0.39}), {0, 1, 0, 0, 0}));
  CHECK(near(filtered(weights, {.top_p = 0.41}), {0, 0.4, 0, 0.25, 0}));  // the one that passes the line stays
  CHECK(near(filtered(weights, {.top_p = 0.94}), {0.1, 0.4, 0, 0.25, 0.2}));
  CHECK(near(filtered(weights, {.top_p = 0.96}), weights));
  CHECK(near(filtered(weights, {.min_p = 0.51}), {0, 0.4, 0, 0.25, 0}));  // at least 0.204
  CHECK(near(filtered(weights, {.min_p = 0.2}), {0.1, 0.4, 0, 0.25, 0.2}));
  CHECK(near(filtered({1, 1, 0.5}, {.min_p = 1}), {1, 1, 0}));
}

TEST_CASE("sampler: the filters compose as documented, temperature first") {
  // Squared: 0.16, 0.0625, 0.04, 0.01, 0.0025. Of all of it the first two are 0.81, of the first three 0.848.
  CHECK(near(filtered(weights, {.temperature = 0.5, .top_p = 0.8}), {0, 0.16, 0, 0.0625, 0}));
  CHECK(near(filtered(weights, {.temperature = 0.5, .top_k = 3, .top_p = 0.83}), {0, 0.16, 0, 0.0625, 0}));
  CHECK(near(filtered(weights, {.temperature = 0.5, .top_p = 0.83}), {0, 0.16, 0, 0.0625, 0.04}));
  CHECK(near(filtered(weights, {.temperature = 0.5, .min_p = 0.3}), {0, 0.16, 0, 0.0625, 0}));
  CHECK(near(filtered(weights, {.top_k = 4, .top_p = 0.8, .min_p = 0.6}), {0, 0.4, 0, 0.25, 0}));
}

TEST_CASE("sampler: of equal logits the lower token counts as the more probable") {
  CHECK(near(filtered({2, 3, 3, 3, 2}, {.temperature = 0}), {0, 1, 0, 0, 0}));
  CHECK(near(filtered({2, 3, 3, 3, 2}, {.top_k = 2}), {0, 3, 3, 0, 0}));
  CHECK(near(filtered({2, 3, 3, 3, 2}, {.top_k = 4}), {2, 3, 3, 3, 0}));
  CHECK(near(filtered({1, 1, 1, 1}, {.top_p = 0.6}), {1, 1, 1, 0}));
  // Weights that underflow to zero keep their order.
  const auto p = Sampler({.temperature = 1e-3, .top_k = 2}).probabilities(std::vector<double>{-9, 0, -1, -2});
  CHECK(near(p, {0, 1, 0, 0}));
}

TEST_CASE("sampler: the penalty divides positive logits and multiplies negative ones, once a token") {
  const std::vector<double> logits = {2, -1, 0.5, 0};
  const auto p = Sampler({.repetition_penalty = 2}).probabilities(logits, std::vector<int32_t>{1, 0, 0, 3, 1});
  CHECK(near(p, {std::exp(1.0), std::exp(-2.0), std::exp(0.5), 1}));
  const Sampler greedy({.temperature = 0, .repetition_penalty = 5});
  CHECK(near(greedy.probabilities(logits, std::vector<int32_t>{0}), {0, 0, 1, 0}));
  CHECK_THROWS_WITH(Sampler({.repetition_penalty = 2}).probabilities(logits, std::vector<int32_t>{4}),
                    ContainsSubstring("token 4 was seen, but there are 4 logits"));
}

TEST_CASE("sampler: greedy draws the largest logit whatever the seed and the filters") {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const SamplerOptions o{.temperature = 0, .top_k = 3, .top_p = 0.5, .min_p = 0.1, .seed = seed};
    CHECK(Sampler(o)(std::vector<double>{-3, -1, -0.5, -2}, 0, static_cast<int64_t>(seed)) == 2);
  }
}

TEST_CASE("sampler: a draw is a function of seed, sequence and position") {
  const auto logits = logits_of(weights);
  const auto draws = [&](uint64_t seed, int64_t sequence, int64_t first) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < 64; ++i) tokens.push_back(Sampler({.seed = seed})(logits, sequence, first + i));
    return tokens;
  };
  CHECK(draws(1, 0, 0) == draws(1, 0, 0));
  CHECK(draws(1, 0, 0) != draws(2, 0, 0));
  CHECK(draws(1, 0, 0) != draws(1, 1, 0));
  CHECK(draws(1, 0, 0) != draws(1, 0, 64));
}

TEST_CASE("sampler: tokens come as often as their probability says, and filtered ones never") {
  const auto logits = logits_of(weights);
  for (const SamplerOptions& o : {SamplerOptions{}, SamplerOptions{.temperature = 0.7, .top_k = 4, .top_p = 0.9}}) {
    const Sampler sampler(o);
    const auto p = sampler.probabilities(logits);
    constexpr int64_t draws = 40'000;
    std::vector<double> counts(p.size());
    for (int64_t i = 0; i < draws; ++i) ++counts[static_cast<size_t>(sampler(logits, i % 4, i / 4))];
    for (size_t i = 0; i < p.size(); ++i) {
      const double deviation = std::sqrt(draws * p[i] * (1 - p[i]));  // of a binomial count; the seed is fixed
      INFO("token " << i << ": " << counts[i] << " draws, probability " << p[i]);
      CHECK(std::abs(counts[i] - draws * p[i]) <= 4 * deviation);
    }
  }
}

TEST_CASE("sampler: minus infinity bans a token; other logits that are no numbers are refused by name") {
  CHECK(near(Sampler({}).probabilities(std::vector<double>{0, -infinity, 0}), {1, 0, 1}));
  for (const double temperature : {0.0, 1.0}) {
    const Sampler sampler({.temperature = temperature});
    CHECK_THROWS_WITH(sampler.probabilities(std::vector<double>{0, std::nan(""), 1}),
                      ContainsSubstring("the logit of token 1 is nan"));
    CHECK_THROWS_WITH(sampler(std::vector<double>{0, 1, infinity}, 0, 0), ContainsSubstring("token 2 is inf"));
    CHECK_THROWS_WITH(sampler(std::vector<double>{-infinity, -infinity}, 0, 0), ContainsSubstring("none of 2 logits"));
    CHECK_THROWS_AS(sampler({}, 0, 0), Error);
  }
}

TEST_CASE("sampler: options out of range are named") {
  CHECK_THROWS_WITH(Sampler({.temperature = -1}), ContainsSubstring("temperature of -1"));
  CHECK_THROWS_WITH(Sampler({.temperature = std::nan("")}), ContainsSubstring("temperature of nan"));
  CHECK_THROWS_WITH(Sampler({.top_k = -2}), ContainsSubstring("top-k of -2"));
  CHECK_THROWS_WITH(Sampler({.top_p = 0}), ContainsSubstring("top-p of 0"));
  CHECK_THROWS_WITH(Sampler({.top_p = 1.5}), ContainsSubstring("top-p of 1.5"));
  CHECK_THROWS_WITH(Sampler({.min_p = -0.1}), ContainsSubstring("min-p of -0.1"));
  CHECK_THROWS_WITH(Sampler({.repetition_penalty = 0}), ContainsSubstring("penalty of 0"));
}

TEST_CASE("sampler: from a tensor, f32 or f64, as from a list") {
  const Sampler sampler({.temperature = 0.9});
  for (const DType type : {DType::f32, DType::f64}) {
    const Tensor logits = to(random_normal({1, 700}, 3), type);
    for (int64_t i = 0; i < 50; ++i) CHECK(sampler.draw(logits, 1, i) == sampler(to_host(logits), 1, i));
  }
}

TEST_CASE("sampler: top-k and top-p of many tokens keep what a full sort keeps") {
  constexpr size_t n = 5000;
  const Tensor random = random_normal({n}, 3, 2);
  std::vector<double> logits = to_host(random);
  for (size_t i = 0; i < n; i += 3) logits[i] = std::round(logits[i]);  // many are equal
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::greater(), [&](size_t i) { return logits[i]; });
  double all = 0;
  for (const double l : logits) all += std::exp(l);
  for (const int64_t top_k : {0, 1, 255, 257, 4999, 6000})
    for (const double top_p : {0.05, 0.5, 0.9, 0.999, 1.0}) {
      const size_t most = top_k == 0 ? n : std::min(n, static_cast<size_t>(top_k));
      double total = 0, sum = 0;
      for (size_t i = 0; i < most; ++i) total += std::exp(logits[order[i]]);
      std::vector<double> expected(n);
      for (size_t i = 0; i < most && sum < top_p * total * (1 - 1e-12); ++i)  // at 1 rounding decides
        sum += expected[order[i]] = std::exp(logits[order[i]]);
      if (top_p == 1)
        for (size_t i = 0; i < most; ++i) expected[order[i]] = std::exp(logits[order[i]]);
      INFO("top-k " << top_k << ", top-p " << top_p);
      CHECK(near(Sampler({.top_k = top_k, .top_p = top_p}).probabilities(logits), expected));
    }
}
