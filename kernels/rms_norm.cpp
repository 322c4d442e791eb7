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
  T squares = 0;
  if (residual != nullptr) {
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < n; ++j) {
      const T s = x[j] + residual[j];
      sum[j] = s;
      squares += s * s;
    }
    x = sum;
  } else {
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < n; ++j) squares += x[j] * x[j];
  }
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

void rms_norm_backward(Cpu, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const Slot& ds,
                       const Slot& dweight) {
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
  check(weight.defined() && weight.shape() == Shape{x.size(-1)} &&
            (weight.dtype() == x.dtype() || (x.dtype() == DType::bf16 && weight.dtype() == DType::f32)),
        "RmsNorm: x {} {} but weight {}", name(x.dtype()), to_string(x.shape()),
        weight ? fmt::format("{} {}", name(weight.dtype()), to_string(weight.shape())) : "undefined");
  if (residual) check_alike("RmsNorm", "x", x, "residual", residual);
  x = with_whole_rows(x);
  residual = with_whole_rows(residual);
  weight = contiguous(weight);
  Tensor y = empty_like(x), sum = residual ? empty_like(x) : x;
  on(y.device(), [&](auto backend) { rms_norm_forward(backend, *this, y, sum); });
  x = sum;
  residual = {};
  return {y, sum};
}

void RmsNorm::backward(const Tensor& dy, const Tensor& dsum, Grads& to) const {
  if (!dy) {
    to.give(0, dsum);
    to.give(1, dsum);
    return;
  }
  const bool both = to.wants(0) && to.wants(1);
  Slot ds{}, dweight = to.wants(2) ? to.slot(2) : Slot{};
  if (both) ds = {empty_like(x), false};  // one tensor, given to both
  else if (to.wants(0) || to.wants(1)) ds = to.slot(to.wants(0) ? 0 : 1);
  on(dy.device(),
     [&](auto backend) { rms_norm_backward(backend, *this, with_whole_rows(dy), with_whole_rows(dsum), ds, dweight); });
  if (!both) return;
  to.give(0, ds.tensor);
  to.give(1, ds.tensor);
}

}  // namespace adder
