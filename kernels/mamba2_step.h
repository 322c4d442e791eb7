// The decoding step of a Mamba-2 block around its SSD, for few sequences in bf16 on a GPU: there a kernel's start
// costs as much as its work, so the norms go into the products that read them, and the convolution into the one that
// feeds it. With the SSD's step a block is three kernels instead of six.
#pragma once

#include "adder/kernels/causal_conv1d.h"

#include <array>

namespace adder {

/// s = x + residual,  p = W rms_norm(s),  and channels [first, first + channels) of p through the convolution's step.
struct Mamba2StepIn {
  Tensor x, residual;     // bf16, f32 [batch, d_model]; an undefined residual is zero
  Tensor norm;            // f32 [d_model]
  double eps;
  Tensor weight;          // bf16 [parts, d_model]
  CausalConv1dStep conv;  // its x is undefined: it is in p
  int64_t first;
};
/// out = W gated_rms_norm(y, z), of one group.
struct Mamba2StepOut {
  Tensor y, z;  // bf16 [batch, ssm], rows may lie apart
  Tensor norm;  // f32 [ssm]
  double eps;
  bool norm_before_gate;
  Tensor weight;  // bf16 [d_model, ssm]
};

/// Whether the kernels take them: shapes, dtypes, alignment, at most four sequences. A function of those alone. What is
/// wrong does not fit, and is named by the operators one by one.
bool fits(const Mamba2StepIn& in);
bool fits(const Mamba2StepOut& out);
/// p [batch, parts] and s [batch, d_model]. The convolution's state is moved on in place.
std::array<Tensor, 2> mamba2_step_in(Cuda on, const Mamba2StepIn& in);
/// [batch, d_model]
Tensor mamba2_step_out(Cuda on, const Mamba2StepOut& out);

}  // namespace adder
