#include "adder/layers/sampler.h"

#include "adder/core/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

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
double largest(std::span<const double> logits) {
  double top = -infinity;
  for (size_t i = 0; i < logits.size(); ++i) {
    check(logits[i] < infinity, "Sampler: the logit of token {} is {}", i, logits[i]);  // NaN is not less either
    top = std::max(top, logits[i]);
  }
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

std::vector<double> Sampler::probabilities(std::span<const double> given, std::span<const int32_t> seen) const {
  std::vector<double> logits(given.begin(), given.end()), p(given.size());
  if (options_.repetition_penalty != 1) penalise(logits, seen, options_.repetition_penalty);
  const double top = largest(logits);
  if (options_.temperature == 0) {
    p[static_cast<size_t>(std::ranges::find(logits, top) - logits.begin())] = 1;
    return p;
  }
  for (size_t i = 0; i < p.size(); ++i) p[i] = std::exp((logits[i] - top) / options_.temperature);  // the largest is 1
  if (options_.top_k > 0 || options_.top_p < 1) {
    std::vector<size_t> kept = ranked(p, logits, options_.top_k);
    if (options_.top_p < 1) keep_share(kept, p, options_.top_p);
    std::vector<double> filtered(p.size());
    for (const size_t token : kept) filtered[token] = p[token];
    p = std::move(filtered);
  }
  for (double& x : p)
    if (x < options_.min_p) x = 0;
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= total;
  return p;
}

int32_t Sampler::operator()(std::span<const double> logits, int64_t sequence, int64_t position,
                            std::span<const int32_t> seen) const {
  const std::vector<double> p = probabilities(logits, seen);
  double left = random_.uniform(static_cast<uint64_t>(position), static_cast<uint64_t>(sequence));
  int32_t token = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) continue;
    token = static_cast<int32_t>(i);  // the last one if the sum of all rounds to less than 1
    left -= p[i];
    if (left < 0) break;
  }
  return token;
}

}  // namespace adder::layers
