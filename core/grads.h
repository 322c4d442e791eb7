// Grads: where an operator's backward puts its gradients. The tape decides where each one goes (a fresh tensor, a slice
// of a split's buffer, the flat gradient block of the parameters) and whether it is stored or added.
#pragma once

#include "adder/core/tensor.h"

#include <utility>

namespace adder {

/// A place for one gradient, with the shape of the input it belongs to; rows may lie apart.
struct Slot {
  Tensor tensor;
  bool accumulate;  // add to what is there; otherwise overwrite, every element
};

class Grads {
 public:
  virtual ~Grads() = default;
  /// Whether input i (in the order of the operator's inputs()) needs a gradient.
  virtual bool wants(int i) const = 0;
  /// The place for gradient i; asked for once at most, and then written.
  virtual Slot slot(int i) = 0;
  /// Hands over gradient i as a tensor, which may be one that backward was given. Nothing happens if it is not wanted.
  virtual void give(int i, Tensor gradient) = 0;
};

}  // namespace adder
