// The loss of a language model: output projection and cross-entropy in one operator, over chunks of tokens, so that the
// logits of a whole batch never exist.
//
//   logits = x Wᵀ,  lse = log sum_j exp(logit_j)
//   loss = scale * sum over counted tokens of (lse - logit_target + z lse²)
//   dlogit_j = scale dloss (p_j (1 + 2 z lse) - [j = target])    with p_j = exp(logit_j - lse)
//
// z is the z-loss of PaLM (Chowdhery et al. 2022, sec. 5), which keeps lse near zero. A token with the label -1 is not
// counted: its loss and its dlogit are zero whatever its logits are (but its x enters the product dlogitᵀ x, so it must
// be finite). Rows of W from `vocabulary` on are padding: they take no part in the softmax and get zero gradients.
//
// Backward computes the logits of a chunk again instead of keeping them: 8 tokens vocabulary d operations where 6 would
// do, and the two products of the weight's gradient go straight to where the tape wants it. The logits then live in
// the cache while they are read.
#pragma once

#include "adder/core/grads.h"

#include <tuple>

namespace adder {

/// Label of a token that is not counted.
inline constexpr int32_t not_counted = -1;

/// Backward keeps x, the weight, the targets, the scale and one number a token (lse).
/// Throws if a target lies outside [0, vocabulary) and is not -1.
struct LinearCrossEntropy {
  Tensor x;                // [..., d]
  Tensor weight;           // [vocabulary or more, d]: the embedding if tied
  Tensor targets;          // i32 [...]
  Tensor scale = {};       // f64 [1], what each token's nats are multiplied by: with 1 / (counted tokens of all
                           // micro-batches and ranks), losses and gradients are sums over them. Undefined: 1
  int64_t vocabulary = 0;  // rows of the weight that are tokens; 0: all
  double z_loss = 0;       // z
  int64_t chunk = 0;       // tokens whose logits exist at a time; 0: chosen by the vocabulary
  Tensor logsumexp = {};   // [tokens], set by forward
  auto inputs() { return std::tie(x, weight); }
  Tensor forward();  // [1]; 0 if no token is counted, whatever the scale
  void backward(const Tensor& dloss, Grads& to) const;
};

/// Nats of each token, for evaluation: [...] of x's dtype, 0 where the label is -1. Not recorded on the tape.
Tensor token_losses(const Tensor& x, const Tensor& weight, const Tensor& targets, int64_t vocabulary = 0,
                    int64_t chunk = 0);

// The kernels, on one chunk. logits [tokens, vocabulary] and targets [tokens] are contiguous.

/// Throws unless every target is -1 or in [0, vocabulary).
void check_targets(Cpu, const Tensor& targets, int64_t vocabulary);
void check_targets(Cuda, const Tensor& targets, int64_t vocabulary);

/// losses[i] = lse - logit[target] + z lse² or 0, logsumexp[i] = lse: [tokens].
void cross_entropy_forward(Cpu, const Tensor& logits, const Tensor& targets, double z_loss, const Tensor& losses,
                           const Tensor& logsumexp);
void cross_entropy_forward(Cuda, const Tensor& logits, const Tensor& targets, double z_loss, const Tensor& losses,
                           const Tensor& logsumexp);

/// to [1] = scale * sum of the losses, in f64 and in order; 0 if no token is counted. An undefined scale is 1.
void sum_losses(Cpu, const Tensor& losses, const Tensor& targets, const Tensor& scale, const Tensor& to);
void sum_losses(Cuda, const Tensor& losses, const Tensor& targets, const Tensor& scale, const Tensor& to);

/// Turns logits into their gradients, in place.
struct CrossEntropyBackward {
  Tensor logits;     // [tokens, vocabulary], overwritten
  Tensor targets;    // [tokens]
  Tensor logsumexp;  // [tokens]
  Tensor dloss;      // [1]
  Tensor scale;      // [1] or undefined
  double z_loss = 0;
};
void cross_entropy_backward(Cpu, const CrossEntropyBackward& b);
void cross_entropy_backward(Cuda, const CrossEntropyBackward& b);

}  // namespace adder
