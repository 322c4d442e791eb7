#include "adder/kernels/rms_norm.h"

#include "adder/kernels/elements.h"
#include "adder/kernels/matmul.h"

#include <cmath>
#include <vector>

namespace adder {
namespace {

constexpr int64_t block = 64;  // rows whose part of dweight is summed by one thread

template <class T>
T inverse_rms(T sum_of_squares, int64_t n, double eps) {
  return 1 / std::sqrt(sum_of_squares / static_cast<T>(n) + static_cast<T>(eps));
}

template <class T>
void forward_row(int64_t n, double eps, const T* x, const T* residual, const T* weight, T* y, T* sum) {
  if (residual != nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) sum[j] = x[j] + residual[j];
    x = sum;
  }
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < n; ++j) squares += x[j] * x[j];
  const T r = inverse_rms(squares, n, eps);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) y[j] = x[j] * r * weight[j];
}

// dsum may be null; dweight is added to.
template <class T>
void backward_row(int64_t n, double eps, const T* s, const T* weight, const T* dy, const T* dsum, T* ds,
                  bool accumulate, T* dweight) {
  T squares = 0, product = 0;
#pragma omp simd reduction(+ : squares, product)
  for (int64_t j = 0; j < n; ++j) {
    squares += s[j] * s[j];
    product += dy[j] * weight[j] * s[j];
  }
  const T r = inverse_rms(squares, n, eps), c = product / static_cast<T>(n) * r * r;
  if (dsum != nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      dweight[j] += dy[j] * (s[j] * r);
      put(ds[j], r * (dy[j] * weight[j] - s[j] * c) + dsum[j], accumulate);
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      dweight[j] += dy[j] * (s[j] * r);
      put(ds[j], r * (dy[j] * weight[j] - s[j] * c), accumulate);
    }
  }
}

}  // namespace

void rms_norm_forward(Cpu, const RmsNorm& op, const Tensor& y, const Tensor& sum) {
  const int64_t n = op.x.size(-1), count = op.x.count();
  with_float("RmsNorm", y.dtype(), [&]<class T>(T) {
    const Elements<T> x(op.x, n), residual(op.residual, n), to_y(y, n), to_sum(sum, n);
    const T* weight = op.weight.data<T>();
#pragma omp parallel for if (count > 1 << 14)
    for (int64_t i = 0; i < count; i += n) forward_row(n, op.eps, x(i), residual(i), weight, to_y(i), to_sum(i));
  });
}

void rms_norm_backward(Cpu, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const RmsNormSlots& slots) {
  const Slot &ds = slots.x.tensor ? slots.x : slots.residual, &dweight = slots.weight;
  const int64_t n = op.x.size(-1), rows = op.x.count() / n, blocks = (rows + block - 1) / block;
  const Tensor partial = dweight.tensor ? Tensor({blocks, n}, dy.dtype(), dy.device()) : Tensor();
  with_float("RmsNorm", dy.dtype(), [&]<class T>(T) {
    const Elements<T> s(op.x, n), d(dy, n), d_sum(dsum, n), to(ds.tensor, n), sums(partial, n);
    const T* weight = op.weight.data<T>();
#pragma omp parallel if (rows * n > 1 << 14)
    {
      std::vector<T> unwanted(static_cast<size_t>(2 * n));  // where a gradient goes that nobody asked for
#pragma omp for
      for (int64_t b = 0; b < blocks; ++b) {
        T* sum = partial ? sums(b * n) : unwanted.data();
        std::fill_n(sum, n, T{0});
        for (int64_t i = b * block; i < std::min(rows, (b + 1) * block); ++i)
          backward_row(n, op.eps, s(i * n), weight, d(i * n), d_sum(i * n),
                       ds.tensor ? to(i * n) : unwanted.data() + n, ds.accumulate, sum);
      }
    }
  });
  if (partial) sum_rows(Cpu{}, partial, dweight.tensor, dweight.accumulate);
}

std::array<Tensor, 2> RmsNorm::forward() {
  check(x.defined() && x.rank() >= 1 && x.size(-1) > 0, "RmsNorm: x {} has no channels",
        x ? to_string(x.shape()) : "(undefined)");
  const auto check_operand = [&](const char* what, const Tensor& t, const Shape& shape) {
    const DType wide = x.dtype() == DType::bf16 ? DType::f32 : x.dtype();
    check(t.defined() && t.shape() == shape && t.dtype() == wide && t.device() == x.device(),
          "RmsNorm: x {} {} on {} but {} {}", name(x.dtype()), to_string(x.shape()), name(x.device()), what,
          t ? fmt::format("{} {} on {}", name(t.dtype()), to_string(t.shape()), name(t.device())) : "undefined");
  };
  check_operand("weight", weight, {x.size(-1)});
  if (residual) check_operand("residual", residual, x.shape());
  x = with_whole_rows(x);
  residual = with_whole_rows(residual);
  weight = contiguous(weight);
  x_type = x.dtype();
  const bool is_x = !residual && x_type == weight.dtype();
  const Tensor y = empty_like(x), sum = is_x ? x : Tensor(x.shape(), weight.dtype(), x.device());
  on(y.device(), [&](auto backend) { rms_norm_forward(backend, *this, y, sum); });
  x = sum;
  residual = {};
  return {y, sum};
}

Tensor rms_norm_again(const RmsNormAgain& norm) {
  const RmsNorm op{.x = with_whole_rows(norm.sum), .weight = contiguous(norm.weight), .eps = norm.eps};
  const Tensor y(norm.sum.shape(), norm.type, norm.sum.device());
  on(y.device(), [&](auto backend) { rms_norm_forward(backend, op, y, {}); });
  return y;
}

void RmsNorm::backward(const Tensor& dy, const Tensor& dsum, Grads& to) const {
  if (!dy) {
    if (to.wants(0)) to.give(0, adder::to(dsum, x_type));
    to.give(1, dsum);
    return;
  }
  const auto slot = [&](int i) { return to.wants(i) ? to.slot(i) : Slot{}; };
  const bool shared = to.wants(0) && to.wants(1) && x_type == x.dtype();  // one tensor, given to both
  const RmsNormSlots slots{.x = shared ? Slot{empty_like(x), false} : slot(0), .residual = shared ? Slot{} : slot(1),
                           .weight = slot(2)};
  on(dy.device(),
     [&](auto backend) { rms_norm_backward(backend, *this, with_whole_rows(dy), with_whole_rows(dsum), slots); });
  if (!shared) return;
  to.give(0, slots.x.tensor);
  to.give(1, slots.x.tensor);
}

}  // namespace adder
