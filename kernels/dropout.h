// Dropout whose mask is a function of the run, not of its schedule.
#pragma once

#include "adder/core/grads.h"

#include <tuple>

namespace adder {

/// y = x keep / (1 - p), where each element is kept with probability 1 - p.             Srivastava et al. 2014
///
/// An element is kept if its word is >= floor(p 2^32). With g = (first row + batch row) (elements of a row) + i, its index
/// in the global batch, the word is
///   philox({low g/4, high g/4, low step, high step}, {low key, high key})[g % 4]              (core/random.h)
/// so the mask does not depend on micro-batches, ranks or threads, and a recomputed block repeats it.
/// Backward keeps a copy of the position (8 bytes) and makes the mask again. p = 0 is the identity, without a copy.
struct Dropout {
  Tensor x;              // [batch, ...]
  double p = 0;          // in [0, 1)
  uint64_t key = 0;      // Random(seed, name).key(): another one for every layer
  Tensor position = {};  // i32 [2]: step, and the first batch row's number in the global batch
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

/// y = x keep / (1 - p); both contiguous. op.x is not read.
void dropout(Cpu, const Dropout& op, const Tensor& x, const Tensor& y);
void dropout(Cuda, const Dropout& op, const Tensor& x, const Tensor& y);

}  // namespace adder
