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
/// It keeps s and the weight; r is computed again while the row is in cache. Operands have one dtype,
/// but with bf16 the weight may be f32.
/// Memory floor: forward reads x, residual and writes s, y; backward reads s, dy, ds and writes one gradient.
struct RmsNorm {
  Tensor x;              // [..., channel]
  Tensor residual = {};  // [..., channel], optional
  Tensor weight;         // [channel]
  double eps = 1e-5;
  auto inputs() { return std::tie(x, residual, weight); }
  std::array<Tensor, 2> forward();  // y and s, as x
  void backward(const Tensor& dy, const Tensor& dsum, Grads& to) const;
};

void rms_norm_forward(Cpu, const RmsNorm& op, const Tensor& y, const Tensor& sum);
void rms_norm_forward(Cuda, const RmsNorm& op, const Tensor& y, const Tensor& sum);
/// op.x is s. dsum may be undefined, and so may the tensor of a slot: that gradient is not wanted.
void rms_norm_backward(Cpu, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const Slot& ds,
                       const Slot& dweight);
void rms_norm_backward(Cuda, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const Slot& ds,
                       const Slot& dweight);

}  // namespace adder
