// Root mean square normalisation, with the addition to the residual stream in front of it.
#pragma once

#include "adder/core/grads.h"

#include <array>
#include <tuple>

namespace adder {

/// s = x + residual,   y = s r ⊙ weight,   r = 1 / sqrt(mean(s²) + eps) over the channels        Zhang & Sennrich 2019
///
/// Two outputs, y and s: s is the residual stream that the next block adds to (without a residual it is x itself).
/// Backward, with d = dy ⊙ weight and x̂ = s r:  ds = r (d - x̂ mean(d ⊙ x̂)) + (what arrived for s), given to x and to
/// residual;  dweight = sum of dy ⊙ x̂ over the rows, in blocks of fixed size summed in order.
/// It keeps s and the weight; r is computed again while the row is in cache.
///
/// Operands have one dtype, but where x is bf16 the stream stays f32: residual, s (without a residual x widened) and
/// the weight are f32, y is bf16; ds is given to x in bf16 and to residual in f32.
/// Memory floor: forward reads x, residual and writes s, y; backward reads s, dy, ds and writes one gradient, or where
/// x is bf16 two.
struct RmsNorm {
  Tensor x;              // [..., channel]
  Tensor residual = {};  // [..., channel], optional
  Tensor weight;         // [channel]
  double eps = 1e-5;
  DType x_type = DType::f32;  // of x, which is not kept: set by forward
  auto inputs() { return std::tie(x, residual, weight); }
  std::array<Tensor, 2> forward();  // y and s [..., channel]
  void backward(const Tensor& dy, const Tensor& dsum, Grads& to) const;
};

/// y of an RmsNorm once more, bit for bit, from what its backward keeps.
struct RmsNormAgain {
  Tensor sum;     // s [..., channel]
  Tensor weight;  // [channel]
  double eps;
  DType type;     // of y
};
Tensor rms_norm_again(const RmsNormAgain& norm);

/// Gradients; an undefined tensor: not wanted. x and residual of one dtype have one gradient: then one of them at most.
struct RmsNormSlots {
  Slot x, residual, weight;
};
/// sum undefined: op.x is s, there is no residual, and y alone is wanted.
void rms_norm_forward(Cpu, const RmsNorm& op, const Tensor& y, const Tensor& sum);
void rms_norm_forward(Cuda, const RmsNorm& op, const Tensor& y, const Tensor& sum);
/// op.x is s. dsum may be undefined.
void rms_norm_backward(Cpu, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const RmsNormSlots& to);
void rms_norm_backward(Cuda, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const RmsNormSlots& to);

}  // namespace adder
