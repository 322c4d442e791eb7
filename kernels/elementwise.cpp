#include "adder/kernels/elementwise.h"

#include "adder/kernels/elements.h"
#include "adder/kernels/vector_math.h"

namespace adder {

void add(Cpu, const Tensor& a, const Tensor& b, const Tensor& y) {
  with_float("Add", y.dtype(), [&]<class T>(T) {
    each_piece<T>([](int64_t n, const T* a_, const T* b_, T* y_) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) y_[i] = a_[i] + b_[i];
    }, a, b, y);
  });
}

void multiply(Cpu, const Tensor& a, const Tensor& b, const Slot& y) {
  with_float("Multiply", a.dtype(), [&]<class T>(T) {
    each_piece<T>([add = y.accumulate](int64_t n, const T* a_, const T* b_, T* y_) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) put(y_[i], a_[i] * b_[i], add);
    }, a, b, y.tensor);
  });
}

void scale(Cpu, const Tensor& x, double factor, const Slot& y) {
  with_float("Scale", x.dtype(), [&]<class T>(T) {
    each_piece<T>([add = y.accumulate, c = static_cast<T>(factor)](int64_t n, const T* x_, T* y_) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) put(y_[i], c * x_[i], add);
    }, x, y.tensor);
  });
}

void scale(Cpu on, const Tensor& x, const Tensor& factor, const Slot& y) { scale(on, x, item(factor), y); }

void silu_forward(Cpu, const Tensor& x, const Tensor& y) {
  with_float("Silu", x.dtype(), [&]<class T>(T) {
    each_piece<T>([](int64_t n, const T* x_, T* y_) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) y_[i] = math::silu(x_[i]);
    }, x, y);
  });
}

void silu_backward(Cpu, const Tensor& x, const Tensor& dy, const Slot& dx) {
  with_float("Silu", x.dtype(), [&]<class T>(T) {
    with_flag(dx.accumulate, [&](auto add) {
      each_piece<T>([add](int64_t n, const T* x_, const T* dy_, T* dx_) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) put(dx_[i], dy_[i] * math::silu_gradient(x_[i]), add);
      }, x, dy, dx.tensor);
    });
  });
}

void silu_multiply_forward(Cpu, const SiluMultiply& op, const Tensor& out) {
  with_float("SiluMultiply", out.dtype(), [&]<class T>(T) {
    each_piece<T>([](int64_t n, const T* y, const T* gate, T* out_) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out_[i] = y[i] * math::silu(gate[i]);
    }, op.y, op.gate, out);
  });
}

void silu_multiply_backward(Cpu, const SiluMultiply& op, const Tensor& dout, const Slot& dy, const Slot& dgate) {
  with_float("SiluMultiply", dout.dtype(), [&]<class T>(T) {
    each_piece<T>([&](int64_t n, const T* y, const T* gate, const T* d, T* dy_, T* dgate_) {
      if (dy_ != nullptr)
        with_flag(dy.accumulate, [=](auto add) {
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) put(dy_[i], d[i] * math::silu(gate[i]), add);
        });
      if (dgate_ != nullptr)  // the piece is still in cache
        with_flag(dgate.accumulate, [=](auto add) {
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) put(dgate_[i], d[i] * y[i] * math::silu_gradient(gate[i]), add);
        });
    }, op.y, op.gate, dout, dy.tensor, dgate.tensor);
  });
}

Tensor Add::forward() {
  check_alike("Add", "a", a, "b", b);
  Tensor y = empty_like(a);
  on(y.device(), [&](auto backend) { add(backend, a, b, y); });
  a = b = {};
  return y;
}

void Add::backward(const Tensor& dy, Grads& to) const {
  to.give(0, dy);
  to.give(1, dy);
}

Tensor Multiply::forward() {
  check_alike("Multiply", "a", a, "b", b);
  Tensor y = empty_like(a);
  on(y.device(), [&](auto backend) { multiply(backend, a, b, {y, false}); });
  return y;
}

void Multiply::backward(const Tensor& dy, Grads& to) const {
  on(dy.device(), [&](auto backend) {
    if (to.wants(0)) multiply(backend, dy, b, to.slot(0));
    if (to.wants(1)) multiply(backend, dy, a, to.slot(1));
  });
}

Tensor Scale::forward() {
  check(x.defined(), "Scale: x is undefined");
  Tensor y = empty_like(x);
  on(y.device(), [&](auto backend) { scale(backend, x, factor, {y, false}); });
  x = {};
  return y;
}

void Scale::backward(const Tensor& dy, Grads& to) const {
  on(dy.device(), [&](auto backend) { scale(backend, dy, factor, to.slot(0)); });
}

Tensor Silu::forward() {
  check(x.defined(), "Silu: x is undefined");
  Tensor y = empty_like(x);
  on(y.device(), [&](auto backend) { silu_forward(backend, x, y); });
  return y;
}

void Silu::backward(const Tensor& dy, Grads& to) const {
  on(dy.device(), [&](auto backend) { silu_backward(backend, x, dy, to.slot(0)); });
}

Tensor SiluMultiply::forward() {
  check_alike("SiluMultiply", "y", y, "gate", gate);
  Tensor out = empty_like(y);
  on(out.device(), [&](auto backend) { silu_multiply_forward(backend, *this, out); });
  return out;
}

void SiluMultiply::backward(const Tensor& dout, Grads& to) const {
  const Slot dy = to.wants(0) ? to.slot(0) : Slot{}, dgate = to.wants(1) ? to.slot(1) : Slot{};
  on(dout.device(), [&](auto backend) { silu_multiply_backward(backend, *this, dout, dy, dgate); });
}

Tensor Convert::forward() {
  check(x.defined(), "Convert: x is undefined");
  check(x.dtype() != DType::i32 && type != DType::i32, "Convert: from {} to {}, which is not between floating types",
        name(x.dtype()), name(type));
  from = x.dtype();
  return adder::to(std::exchange(x, {}), type);
}

void Convert::backward(const Tensor& dy, Grads& to) const { to.give(0, adder::to(dy, from)); }

}  // namespace adder
