// The gated normalisation in front of Mamba-2's output projection.
#pragma once

#include "adder/core/grads.h"

#include <tuple>

namespace adder {

/// out = v r ⊙ weight with v = y ⊙ silu(z)               (default: gate first)
/// out = y r ⊙ weight ⊙ silu(z), v = y                    (norm_before_gate)
/// where r = 1 / sqrt(mean(v²) + eps) over each of `groups` equal ranges of channels.       Dao & Gu 2024, RMSNormGated
///
/// Backward, with d the gradient of v r ⊙ weight (dout, times silu(z) if the norm is first) and x̂ = v r:
///   dv = r (d ⊙ weight - x̂ mean(d ⊙ weight ⊙ x̂)),   dweight = sum of d ⊙ x̂ over the rows, in blocks of fixed size
///   gate first:        dy = dv ⊙ silu(z),   dz = dv ⊙ y ⊙ silu'(z)
///   norm_before_gate:  dy = dv,              dz = dout ⊙ x̂ ⊙ weight ⊙ silu'(z)
/// It keeps y, z and the weight; the rest is computed again while the row is in cache. Operands have one dtype, but
/// beside bf16 the weight is f32.
/// Memory floor: forward reads y, z and writes out; backward reads y, z, dout and writes dy, dz.
struct GatedRmsNorm {
  Tensor y, z;    // [..., channel]
  Tensor weight;  // [channel]
  int64_t groups = 1;
  bool norm_before_gate = false;
  double eps = 1e-5;
  auto inputs() { return std::tie(y, z, weight); }
  Tensor forward();  // [..., channel]
  void backward(const Tensor& dout, Grads& to) const;
};

/// Gradients; an undefined tensor: not wanted.
struct GatedRmsNormSlots {
  Slot y, z, weight;
};
void gated_rms_norm_forward(Cpu, const GatedRmsNorm& op, const Tensor& out);
void gated_rms_norm_forward(Cuda, const GatedRmsNorm& op, const Tensor& out);
void gated_rms_norm_backward(Cpu, const GatedRmsNorm& op, const Tensor& dout, const GatedRmsNormSlots& to);
void gated_rms_norm_backward(Cuda, const GatedRmsNorm& op, const Tensor& dout, const GatedRmsNormSlots& to);

}  // namespace adder
