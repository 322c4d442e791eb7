// to += from: how the tape adds gradients.
#pragma once

#include "adder/core/tensor.h"

namespace adder {

/// to[i] += from[i]; one shape, any pitch; both f32 or both f64.
void accumulate(Cpu, const Tensor& from, const Tensor& to);
void accumulate(Cuda, const Tensor& from, const Tensor& to);

inline void accumulate(const Tensor& from, const Tensor& to) {
  on(to.device(), [&](auto backend) { accumulate(backend, from, to); });
}

/// Adds in place, as the losses of micro-batches do: loss += backward(model.loss(batch)).
inline Tensor& operator+=(Tensor& to, const Tensor& from) {
  accumulate(from, to);
  return to;
}

}  // namespace adder
