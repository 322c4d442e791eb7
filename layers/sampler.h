// Sampler: from the logits of one position to a token. The steps, in the order in which they compose:
//
//   1. repetition penalty   l_i := l_i / r if l_i > 0, else l_i r, for every token i that was seen
//                           (Keskar et al. 2019, "CTRL", sec. 4.1, with the sign of l heeded)
//   2. temperature          p = softmax(l / T); T = 0 takes the largest l, and 3 to 5 change nothing
//   3. top-k                the k most probable tokens stay (Fan et al. 2018, sec. 5.4)
//   4. top-p                of these, renormalised, the fewest most probable whose sum reaches top_p stay
//                           (Holtzman et al. 2020, sec. 3.1)
//   5. min-p                of these, the tokens with p_i >= min_p max_j p_j stay (Nguyen et al. 2024)
//   6. a token is drawn from what is left, renormalised
//
// Of tokens with equal logits the lower number counts as the more probable, so top-k keeps exactly k tokens. A logit of
// minus infinity bans its token.
#pragma once

#include "adder/core/random.h"
#include "adder/core/tensor.h"

#include <cstdint>
#include <span>
#include <vector>

namespace adder::layers {

struct SamplerOptions {
  double temperature = 1;         // T >= 0; 0: greedy
  int64_t top_k = 0;              // 0: all
  double top_p = 1;               // in (0, 1]; 1: all
  double min_p = 0;               // in [0, 1]; 0: all
  double repetition_penalty = 1;  // r > 0; 1: none. Little use for bytes: every letter repeats
  uint64_t seed = 1;

  /// Throws, naming the field, if a value is out of its range.
  void validate() const;
};

class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);

  /// What the token is drawn from: one probability a token, 0 where it was filtered out. Greedy: 1 for one token.
  /// `seen`: the tokens to be penalised, in any order and number. Throws if a logit is NaN or +infinity or if all are
  /// -infinity, and if a token seen has no logit.
  std::vector<double> probabilities(std::span<const double> logits, std::span<const int32_t> seen = {}) const;

  /// The token for a position of a sequence: a pure function of its arguments and the seed.
  int32_t operator()(std::span<const double> logits, int64_t sequence, int64_t position,
                     std::span<const int32_t> seen = {}) const;
  /// The same from a tensor, f32 or f64 on the CPU.
  int32_t draw(const Tensor& logits, int64_t sequence, int64_t position, std::span<const int32_t> seen = {}) const;

 private:
  // Numbers that the probabilities are proportional to, and their sum.
  struct Weights {
    std::vector<double> list;
    double sum;
  };
  Weights weights(std::vector<double> logits, std::span<const int32_t> seen) const;
  int32_t draw_from(const Weights& weights, int64_t sequence, int64_t position) const;

  SamplerOptions options_;
  Random random_;
};

}  // namespace adder::layers
