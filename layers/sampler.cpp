#include "adder/layers/sampler.h"

#include "adder/core/error.h"
#include "adder/kernels/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace adder::layers {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

void penalise(std::vector<double>& logits, std::span<const int32_t> seen, double penalty) {
  std::vector<bool> done(logits.size());
  for (const int32_t token : seen) {
    const auto i = static_cast<size_t>(token);  // a negative one is beyond the end
    check(i < logits.size(), "Sampler: token {} was seen, but there are {} logits", token, logits.size());
    if (done[i]) continue;
    done[i] = true;
    logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  }
}

// The largest logit; throws if there is no such thing.
double top_of(std::span<const double> logits) {
  const double top = largest(logits);
  for (size_t i = 0; top == infinity; ++i)
    check(logits[i] < infinity, "Sampler: the logit of token {} is {}", i, logits[i]);  // NaN is not less either
  check(top > -infinity, "Sampler: none of {} logits is finite", logits.size());
  return top;
}

// The tokens, the most probable first, as far as top-k lets them through.
std::vector<size_t> ranked(const std::vector<double>& weights, const std::vector<double>& logits, int64_t top_k) {
  std::vector<size_t> tokens(weights.size());
  std::iota(tokens.begin(), tokens.end(), size_t{0});
  const size_t kept = top_k == 0 ? tokens.size() : std::min(tokens.size(), static_cast<size_t>(top_k));
  // By logit: weights that underflowed to zero would tie.
  std::partial_sort(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(kept), tokens.end(),
                    [&](size_t a, size_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  tokens.resize(kept);
  return tokens;
}

// The fewest first tokens whose weights reach `share` of all of theirs; at least one.
void keep_share(std::vector<size_t>& tokens, const std::vector<double>& weights, double share) {
  double total = 0, sum = 0;
  for (const size_t token : tokens) total += weights[token];
  size_t kept = 0;
  while (kept < tokens.size() && sum < share * total) sum += weights[tokens[kept++]];
  tokens.resize(kept);
}

}  // namespace

void SamplerOptions::validate() const {
  check(temperature >= 0 && temperature < infinity, "Sampler: a temperature of {} is not in [0, infinity)",
        temperature);
  check(top_k >= 0, "Sampler: a top-k of {} is negative", top_k);
  check(top_p > 0 && top_p <= 1, "Sampler: a top-p of {} is not in (0, 1]", top_p);
  check(min_p >= 0 && min_p <= 1, "Sampler: a min-p of {} is not in [0, 1]", min_p);
  check(repetition_penalty > 0 && repetition_penalty < infinity, "Sampler: a repetition penalty of {} is not in "
        "(0, infinity)", repetition_penalty);
}

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed, "sampler") {
  options_.validate();
}

Sampler::Weights Sampler::weights(std::vector<double> logits, std::span<const int32_t> seen) const {
  if (options_.repetition_penalty != 1) penalise(logits, seen, options_.repetition_penalty);
  const double top = top_of(logits);
  if (options_.temperature == 0) {
    std::vector<double> one(logits.size());
    one[static_cast<size_t>(std::ranges::find(logits, top) - logits.begin())] = 1;
    return {std::move(one), 1};
  }
  const bool is_cut = options_.top_k > 0 || options_.top_p < 1;
  std::vector<double> before = is_cut ? logits : std::vector<double>(), p = std::move(logits);
  double sum = exponentials(p, top, options_.temperature);  // the largest is 1
  if (is_cut) {
    std::vector<size_t> kept = ranked(p, before, options_.top_k);
    if (options_.top_p < 1) keep_share(kept, p, options_.top_p);
    std::vector<double> filtered(p.size());
    for (const size_t token : kept) filtered[token] = p[token];
    p = std::move(filtered);
  }
  if (options_.min_p > 0)
    for (double& x : p)
      if (x < options_.min_p) x = 0;
  if (is_cut || options_.min_p > 0) sum = std::accumulate(p.begin(), p.end(), 0.0);
  return {std::move(p), sum};
}

std::vector<double> Sampler::probabilities(std::span<const double> logits, std::span<const int32_t> seen) const {
  Weights w = weights({logits.begin(), logits.end()}, seen);
  for (double& x : w.list) x /= w.sum;
  return std::move(w.list);
}

int32_t Sampler::draw_from(const Weights& w, int64_t sequence, int64_t position) const {
  double left = random_.uniform(static_cast<uint64_t>(position), static_cast<uint64_t>(sequence));
  int32_t token = 0;
  for (size_t i = 0; i < w.list.size(); ++i) {
    if (w.list[i] == 0) continue;
    token = static_cast<int32_t>(i);  // the last one if the sum of all rounds to less than 1
    left -= w.list[i] / w.sum;
    if (left < 0) break;
  }
  return token;
}

int32_t Sampler::operator()(std::span<const double> logits, int64_t sequence, int64_t position,
                            std::span<const int32_t> seen) const {
  return draw_from(weights({logits.begin(), logits.end()}, seen), sequence, position);
}

int32_t Sampler::draw(const Tensor& logits, int64_t sequence, int64_t position,
                      std::span<const int32_t> seen) const {
  return draw_from(weights(to_host(logits), seen), sequence, position);
}

}  // namespace adder::layers
