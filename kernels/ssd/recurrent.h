// SSD on the GPU as the recurrence says it, token by token: any head_dim, any number of groups, up to 512 states, f32
// and bf16. Arithmetic is f32. Sums have one order: the same bits in every run.
#pragma once

#include "adder/kernels/ssd/ssd.h"

namespace adder::ssd {

/// op.initial_state, if there is one, is also copied to to.states [batch, head, head_dim, state], for backward.
void recurrent_forward(Cuda on, const Ssd& op, const SsdResult& to);
/// Reads the initial state in op.states. Works back over segments of time so long that its scratch stays near 1 GiB,
/// or of op.chunk tokens, rounded up to multiples of 8, if that is given.
void recurrent_backward(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to);

}  // namespace adder::ssd
