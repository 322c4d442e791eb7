// Later: a number on its way from the device, for a host that does not wait for it. A training step logs its loss this
// way: the step's kernels are still running when the next step's are already queued.
#pragma once

#include "adder/core/tensor.h"

#include <functional>

namespace adder {

class Later {
 public:
  /// A number that is here.
  Later(double value) : value_(value) {}
  /// A tensor of one element, as it is after all work queued so far. From the CPU it is here at once; from the GPU the
  /// copy has begun, and what happens to the tensor afterwards does not matter.
  Later(const Tensor& of_one);

  bool here() const { return !arriving_; }
  /// The number; waits for it if it is still on its way.
  double value() const { return arriving_ ? arriving_() : value_; }

 private:
  std::function<double()> arriving_;
  double value_ = 0;
};

/// The elements of a contiguous tensor as they are after all work queued so far, on their way to the host. The function
/// returned waits for them.
std::function<Tensor()> later(const Tensor& t);

}  // namespace adder
