// to += from: how the tape adds gradients.
#pragma once

#include "adder/core/tensor.h"

namespace adder {

/// to[i] += from[i]; one shape, any pitch, one floating dtype; on the GPU also from bf16 into f32.
void accumulate(const Tensor& from, const Tensor& to);
void accumulate(Cpu, const Tensor& from, const Tensor& to);
void accumulate(Cuda on, const Tensor& from, const Tensor& to);

/// Adds in place, as the losses of micro-batches do: loss += backward(model.loss(batch)).
inline Tensor& operator+=(Tensor& to, const Tensor& from) {
  accumulate(from, to);
  return to;
}

}  // namespace adder
