#include "adder/layers/sampler.h"

#include "adder/core/error.h"
#include "adder/kernels/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
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

struct Candidate {
  double logit;  // and not its weight: those that underflowed to zero would tie
  size_t token;
};
bool before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Tokens by their probability, sorted only as far as somebody asks: of 50 000, few.
class Ranking {
 public:
  explicit Ranking(std::span<const double> logits) {
    list_.reserve(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) list_.push_back({logits[i], i});
  }
  size_t size() const { return list_.size(); }
  // The k most probable ones stay.
  void cut(size_t k) {
    sort_to(k);
    list_.resize(std::min(k, size()));
  }
  // The fewest first ones whose weights reach `share` of all of theirs stay; at least one.
  void keep_share(std::span<const double> weights, double share) {
    double total = 0, sum = 0;
    for (const Candidate& c : list_) total += weights[c.token];
    size_t kept = 0;
    while (kept < size() && sum < share * total) {
      if (kept >= sorted_) sort_to(std::max<size_t>(256, 4 * sorted_));
      sum += weights[list_[kept++].token];
    }
    list_.resize(kept);
  }
  // The others' weights become zero.
  std::vector<double> filter(std::span<const double> weights) const {
    std::vector<double> filtered(weights.size());
    for (const Candidate& c : list_) filtered[c.token] = weights[c.token];
    return filtered;
  }

 private:
  void sort_to(size_t end) {
    end = std::min(end, size());
    if (end <= sorted_) return;
    const auto at = [&](size_t i) { return list_.begin() + static_cast<std::ptrdiff_t>(i); };
    if (end - sorted_ <= 1024) {  // few: most of the others are looked at once
      std::partial_sort(at(sorted_), at(end), list_.end(), before);
    } else {
      if (end < size()) std::nth_element(at(sorted_), at(end), list_.end(), before);
      std::sort(at(sorted_), at(end), before);
    }
    sorted_ = end;
  }

  std::vector<Candidate> list_;
  size_t sorted_ = 0;  // so many first ones
};

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
  std::optional<Ranking> ranking;
  if (options_.top_k > 0 || options_.top_p < 1) ranking.emplace(logits);
  std::vector<double> p = std::move(logits);
  double sum = exponentials(p, top, options_.temperature);  // the largest is 1
  if (ranking) {
    if (options_.top_k > 0) ranking->cut(static_cast<size_t>(options_.top_k));
    if (options_.top_p < 1) ranking->keep_share(p, options_.top_p);
    p = ranking->filter(p);
  }
  if (options_.min_p > 0)
    for (double& x : p)
      if (x < options_.min_p) x = 0;
  if (ranking || options_.min_p > 0) sum = std::accumulate(p.begin(), p.end(), 0.0);
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
