// SSD on the GPU as the recurrence says it, token by token: any head_dim, any number of groups, up to 512 states, f32
// and bf16. Arithmetic is f32. Sums have one order: the same bits in every run.
#pragma once

#include "adder/kernels/ssd/ssd.h"

namespace adder::ssd {

/// op.initial_state, if there is one, is also copied to to.states [batch, head, head_dim, state], for backward.
void recurrent_forward(Cuda on, const Ssd& op, const SsdResult& to);
/// Reads the initial state in op.states. Works back over some batch rows at a time and over segments of time, as many
/// and so long that all scratch stays below `scratch` bytes; where a single row wants more, row by row over segments of
/// the length that wants least: states of some sqrt(2 time) tokens, and 8 bytes a token, head and 32 channels. For all
/// rows it keeps only sums over their tokens, no more than one token of x in f32 and two of dt in f64. If op.chunk is
/// given, segments have as many tokens, rounded up to a multiple of 8. Results do not depend on the rows at a time, and
/// on segments only in the rounding of D's gradient.
void recurrent_backward(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to,
                        int64_t scratch = int64_t{1} << 30);

}  // namespace adder::ssd
