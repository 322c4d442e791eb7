// The loss of a language model: output projection and cross-entropy in one operator, over chunks of tokens, so that the
// logits of a whole batch never exist.
//
//   logits = x Wᵀ,  lse = log sum_j exp(logit_j)
//   loss = scale * sum over counted tokens of (lse - logit_target + z lse²)
//   dlogit_j = scale dloss (p_j (1 + 2 z lse) - [j = target])    with p_j = exp(logit_j - lse)
//
// z is the z-loss of PaLM (Chowdhery et al. 2022, sec. 5), which keeps lse near zero. A token with the label -1 is not
// counted: its loss and its dlogit are zero whatever its logits are (but its x enters the product dlogitᵀ x, so it
// must be finite). Rows of W from `vocabulary` on are padding: they take no part in the softmax and get zero gradients.
// But the products run over them, since 50288 columns multiply twice as fast as 50277: they change neither the loss nor
// dweight, whatever they hold, and dx only if they are not finite (it gets 0 times W).
//
// Backward computes the logits of a chunk again instead of keeping them: 8 tokens vocabulary d operations where 6 would
// do. With `with_gradients` forward computes the gradients on the way, up to the factor dloss, from logits that are
// there already: 6 operations. It then keeps dx and dweight instead of x; a forward pass that nobody differentiates
// should not ask for it.
//
// On the CPU a chunk's logits live in the cache while they are read. On the GPU a chunk is what keeps the products at
// full speed in some 0.5 GiB: at 50288 columns in bf16, dlogits of 4096 tokens (412 MB) and logits of 512 (103 MB).
//
// With bf16 operands the logits, the losses and the loss are f32; the gradients of the logits are rounded to bf16 for
// the two products.
#pragma once

#include "adder/core/grads.h"

#include <tuple>

namespace adder {

/// Label of a token that is not counted.
inline constexpr int32_t not_counted = -1;

/// Backward keeps x, the weight, the targets, the scale and one number a token (lse); with_gradients, the gradients.
/// A target outside [0, vocabulary) that is not -1 throws; on the GPU, which nobody waits for, it makes the loss and
/// the gradients NaN instead, so that the optimizer skips the step.
struct LinearCrossEntropy {
  Tensor x;                // [..., d]
  Tensor weight;           // [vocabulary or more, d]: the embedding if tied
  Tensor targets;          // i32 [...]
  Tensor scale = {};       // f64 [1], what each token's nats are multiplied by: with 1 / (counted tokens of all
                           // micro-batches and ranks), losses and gradients are sums over them. Undefined: 1
  int64_t vocabulary = 0;  // rows of the weight that are tokens; 0: all
  double z_loss = 0;       // z
  int64_t chunk = 0;       // tokens whose logits exist at a time; 0: chosen by the vocabulary
  bool with_gradients = false;      // forward computes the gradients too: for a loss that backward will start from
  Tensor logsumexp = {};            // [tokens], at least f32; set by forward
  Tensor dx = {}, dweight = {};     // of dloss 1, dweight at least f32; set by forward if with_gradients
  auto inputs() { return std::tie(x, weight); }
  Tensor forward();  // [1], at least f32; 0 if no token is counted, whatever the scale
  void backward(const Tensor& dloss, Grads& to) const;
};

/// Nats of each token, for evaluation: [...], at least f32, 0 where the label is -1. Not recorded on the tape.
Tensor token_losses(const Tensor& x, const Tensor& weight, const Tensor& targets, int64_t vocabulary = 0,
                    int64_t chunk = 0);

/// Bytes of the pool in which logits and their gradients exist, for so many tokens and rows of the weight.
int64_t logits_bytes(Device device, DType type, int64_t tokens, int64_t rows);

// The kernels, on one chunk. Rows of logits may lie apart; all else is contiguous. On the GPU all numbers are f32, but
// the gradients of the logits may be bf16.

/// losses[i] = lse - logit[target] + z lse² or 0, logsumexp[i] = lse: [tokens]. The GPU takes any target; one that is
/// outside the vocabulary gives NaN twice.
void cross_entropy_forward(Cpu, const Tensor& logits, const Tensor& targets, double z_loss, const Tensor& losses,
                           const Tensor& logsumexp);
void cross_entropy_forward(Cuda, const Tensor& logits, const Tensor& targets, double z_loss, const Tensor& losses,
                           const Tensor& logsumexp);

/// to [1] = scale * sum of the losses, in f64 and in a fixed order; 0 if no token is counted. An undefined scale is 1.
void sum_losses(Cpu, const Tensor& losses, const Tensor& targets, const Tensor& scale, const Tensor& to);
void sum_losses(Cuda, const Tensor& losses, const Tensor& targets, const Tensor& scale, const Tensor& to);

/// The gradients of the logits.
struct CrossEntropyBackward {
  Tensor logits;     // [tokens, vocabulary]
  Tensor dlogits;    // the same shape; may be the logits themselves
  Tensor targets;    // [tokens]
  Tensor logsumexp;  // [tokens]
  Tensor dloss;      // [1]; undefined: 1
  Tensor scale;      // [1]; undefined: 1
  double z_loss = 0;
};
void cross_entropy_backward(Cpu, const CrossEntropyBackward& b);
void cross_entropy_backward(Cuda, const CrossEntropyBackward& b);

}  // namespace adder
