// Operators that work element by element. Inputs may have rows apart; outputs are contiguous. Operands of one operator
// have one shape, dtype and device (there is no broadcasting); anything else throws, naming both.
#pragma once

#include "adder/core/grads.h"

#include <tuple>

namespace adder {

/// y = a + b. Backward keeps nothing and hands dy to both.
struct Add {
  Tensor a, b;  // [...]
  auto inputs() { return std::tie(a, b); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

/// y = a b. Backward keeps both: da = dy b, db = dy a.
struct Multiply {
  Tensor a, b;  // [...]
  auto inputs() { return std::tie(a, b); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

/// y = factor x. Backward keeps nothing.
struct Scale {
  Tensor x;  // [...]
  double factor = 1;
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

/// y = silu(x) = x / (1 + exp(-x)). Backward keeps x: dx = dy silu'(x).
struct Silu {
  Tensor x;  // [...]
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

/// out = y silu(gate): the activation of a gated MLP. Where one product makes both, they lie in the order (y, gate).
/// Backward keeps both and runs once over memory: dy = dout silu(gate), dgate = dout y silu'(gate).
struct SiluMultiply {
  Tensor y, gate;  // [...]
  auto inputs() { return std::tie(y, gate); }
  Tensor forward();
  void backward(const Tensor& dout, Grads& to) const;
};

/// The same numbers in another floating dtype, rounded; the gradient is converted back. Backward keeps nothing.
struct Convert {
  Tensor x;  // [...]
  DType type = DType::f32;
  DType from = DType::f32;  // set by forward
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

// Kernels. Shapes are equal, rows may lie apart. A Slot is overwritten or added to.
void add(Cpu, const Tensor& a, const Tensor& b, const Tensor& y);
void add(Cuda, const Tensor& a, const Tensor& b, const Tensor& y);
void multiply(Cpu, const Tensor& a, const Tensor& b, const Slot& y);
void multiply(Cuda, const Tensor& a, const Tensor& b, const Slot& y);
void scale(Cpu, const Tensor& x, double factor, const Slot& y);
void scale(Cuda, const Tensor& x, double factor, const Slot& y);
/// The factor, [1], is read where it lies; f32 on the GPU, x's dtype on the CPU. y may be x.
void scale(Cpu, const Tensor& x, const Tensor& factor, const Slot& y);
void scale(Cuda, const Tensor& x, const Tensor& factor, const Slot& y);
void silu_forward(Cpu, const Tensor& x, const Tensor& y);
void silu_forward(Cuda, const Tensor& x, const Tensor& y);
void silu_backward(Cpu, const Tensor& x, const Tensor& dy, const Slot& dx);
void silu_backward(Cuda, const Tensor& x, const Tensor& dy, const Slot& dx);
void silu_multiply_forward(Cpu, const SiluMultiply& op, const Tensor& out);
void silu_multiply_forward(Cuda, const SiluMultiply& op, const Tensor& out);
/// The tensor of a slot may be undefined: that gradient is not wanted.
void silu_multiply_backward(Cpu, const SiluMultiply& op, const Tensor& dout, const Slot& dy, const Slot& dgate);
void silu_multiply_backward(Cuda, const SiluMultiply& op, const Tensor& dout, const Slot& dy, const Slot& dgate);

}  // namespace adder
