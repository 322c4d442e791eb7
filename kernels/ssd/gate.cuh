// The gate of SSD, backward: from y ⊙ silu(z) to y and z.
#pragma once

#include "adder/core/device.h"
#include "adder/kernels/ssd/ssd.h"

namespace adder::ssd {

/// dz = dout y silu'(z), unless dz is undefined. Needs op.z; dz may lie apart, token from token.
void gate_gradient(Cuda on, const Ssd& op, const Tensor& dout, const Tensor& dz);
/// The same, and returns dy = dout silu(z), of x's dtype; without a gate dout itself.
Tensor through_gate(Cuda on, const Ssd& op, const Tensor& dout, const Tensor& dz);

}  // namespace adder::ssd
