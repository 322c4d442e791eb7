// Operators that move no numbers: View, Split; and Concatenate, which undoes a split.
#pragma once

#include "adder/core/grads.h"

#include <span>
#include <tuple>
#include <vector>

namespace adder {

/// The same elements in another shape, without a copy; throws if x has rows apart that the shape would tear.
/// Backward keeps the old shape; a gradient whose rows are apart and would be torn is copied first.
struct View {
  Tensor x;     // [...]
  Shape shape;  // of as many elements
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

/// Parts of the last axis, as views of x: x = [part 0, part 1, ...]. Backward keeps the shape. The parts' gradients
/// are written straight into slices of one buffer, which becomes the gradient of x; parts without one get zeros.
struct Split {
  Tensor x;                    // [..., sum of sizes]
  std::vector<int64_t> sizes;  // a size may be 0
  Shape shape = {};            // of x, with what a gradient buffer needs: set by forward
  DType dtype = DType::f32;
  Device device = Device::cpu;
  Tensor buffer = {};          // made when the first gradient arrives
  auto inputs() { return std::tie(x); }
  std::vector<Tensor> forward();
  void backward(std::span<const Tensor> dy, Grads& to) const;
  Tensor gradient_buffer(int output);
};

/// y = [part 0, part 1, ...] along the last axis; the other axes, dtype and device are equal. Backward keeps the sizes
/// and hands out slices of dy.
struct Concatenate {
  std::vector<Tensor> parts;        // each [..., n_i]
  std::vector<int64_t> sizes = {};  // set by forward
  std::span<Tensor> inputs() { return parts; }
  Tensor forward();                 // [..., sum of n_i]
  void backward(const Tensor& dy, Grads& to) const;
};

}  // namespace adder
