#include "adder/kernels/matmul.h"

#include "adder/core/error.h"
#include "adder/kernels/blas.h"

#include <algorithm>
#include <atomic>

namespace adder {
namespace {

std::atomic<bool> tf32 = false;

// Elements from one row of a matrix to the next; the row must be the last axis.
int64_t stride(const Tensor& t) {
  if (t.contiguous()) return std::max<int64_t>(1, t.size(-1));
  check(t.row() == t.size(-1), "multiply: matrix {} whose rows have {} elements", to_string(t.shape()), t.row());
  return t.pitch();
}

}  // namespace

ProductSizes sizes_of(const Product& p) {
  const int rank = p.c.rank();
  check((rank == 2 || rank == 3) && p.a.rank() == rank && p.b.rank() == rank,
        "multiply: a {}, b {} and c {} must all be matrices or all be batches of matrices", to_string(p.a.shape()),
        to_string(p.b.shape()), to_string(p.c.shape()));
  const int64_t batch = rank == 3 ? p.c.size(0) : 1;
  const int64_t m = p.c.size(-2), n = p.c.size(-1), k = p.a.size(p.transpose_a ? -2 : -1);
  check(p.a.size(p.transpose_a ? -1 : -2) == m && p.b.size(p.transpose_b ? -2 : -1) == n &&
            p.b.size(p.transpose_b ? -1 : -2) == k && (rank == 2 || (p.a.size(0) == batch && p.b.size(0) == batch)),
        "multiply: a {}{} times b {}{} is not c {}", to_string(p.a.shape()), p.transpose_a ? " transposed" : "",
        to_string(p.b.shape()), p.transpose_b ? " transposed" : "", to_string(p.c.shape()));
  check(!p.bias || (p.bias.shape() == Shape{n} && p.beta == 0), "multiply: c {} but bias {} and beta {}",
        to_string(p.c.shape()), p.bias ? to_string(p.bias.shape()) : "", p.beta);
  check(k > 0 || p.beta == 0 || p.beta == 1, "multiply: beta {} with an empty inner axis", p.beta);
  return {batch, m, n, k, stride(p.a), stride(p.b), stride(p.c)};
}

void multiply(Cpu, const Product& p) {
  const auto [batch, m, n, k, lda, ldb, ldc] = sizes_of(p);
  if (p.c.count() == 0) return;
  with_float("multiply", p.c.dtype(), [&]<class T>(T) {
    const T *a = p.a.data<T>(), *b = p.b.data<T>();
    T* c = p.c.data<T>();
    if (p.bias) {  // c starts as the bias in every row
      const T* bias = p.bias.data<T>();
#pragma omp parallel for
      for (int64_t i = 0; i < batch * m; ++i) std::copy_n(bias, n, c + i * ldc);
    }
    const double beta = p.bias ? 1 : p.beta;
    if (k == 0) {  // an empty sum
      if (beta == 0) fill(p.c, 0);
      return;
    }
    const auto one = [&](int64_t i) {
      blas::gemm<T>(m, n, k, static_cast<T>(p.alpha), {a + i * p.a.size(-2) * lda, lda, p.transpose_a},
                    {b + i * p.b.size(-2) * ldb, ldb, p.transpose_b}, static_cast<T>(beta), c + i * m * ldc, ldc);
    };
    if (batch == 1) {
      one(0);
      return;
    }
#pragma omp parallel for
    for (int64_t i = 0; i < batch; ++i) one(i);
  });
}

void allow_tf32(bool allowed) { tf32 = allowed; }
bool tf32_allowed() { return tf32; }

void multiply(const Product& p) {
  on(p.c.device(), [&](auto backend) { multiply(backend, p); });
}

Tensor Matmul::forward() {
  check(weight.rank() == 2 && x.rank() >= 1 && x.size(-1) == weight.size(1), "Matmul: x {} but weight {}",
        to_string(x.shape()), to_string(weight.shape()));
  check(!bias || bias.shape() == Shape{weight.size(0)}, "Matmul: weight {} but bias {}", to_string(weight.shape()),
        bias ? to_string(bias.shape()) : "");
  const DType type = wide && x.dtype() == DType::bf16 ? DType::f32 : x.dtype();
  Tensor y(x.shape().with(-1, weight.size(0)), type, x.device());
  multiply({.a = x.matrix(), .b = weight, .c = y.matrix(), .transpose_b = true,
            .bias = bias ? to(contiguous(bias), y.dtype()) : Tensor()});
  return y;
}

void Matmul::backward(const Tensor& wide_dy, Grads& to) const {
  const Tensor dy = adder::to(wide_dy, x.dtype());
  if (to.wants(0)) {
    const Slot dx = to.slot(0);
    multiply({.a = dy.matrix(), .b = weight, .c = dx.tensor.matrix(), .beta = dx.accumulate ? 1.0 : 0.0});
  }
  if (to.wants(1)) {
    const Slot dw = to.slot(1);
    multiply(
        {.a = dy.matrix(), .b = x.matrix(), .c = dw.tensor, .transpose_a = true, .beta = dw.accumulate ? 1.0 : 0.0});
  }
  if (bias && to.wants(2)) {
    const Slot db = to.slot(2);
    on(dy.device(), [&](auto backend) { sum_rows(backend, dy, db.tensor, db.accumulate); });
  }
}

Tensor BatchedMatmul::forward() {
  check(a.rank() == b.rank() && (a.rank() == 2 || a.rank() == 3), "BatchedMatmul: a {} and b {}", to_string(a.shape()),
        to_string(b.shape()));
  const int64_t m = a.size(transpose_a ? -1 : -2), n = b.size(transpose_b ? -2 : -1);
  Tensor c(a.rank() == 2 ? Shape{m, n} : Shape{a.size(0), m, n}, a.dtype(), a.device());
  multiply({.a = a, .b = b, .c = c, .transpose_a = transpose_a, .transpose_b = transpose_b});
  return c;
}

void BatchedMatmul::backward(const Tensor& dc, Grads& to) const {
  // c = op(a) op(b): d op(a) = dc op(b)ᵀ, d op(b) = op(a)ᵀ dc; a transposed operand gets the transpose of that.
  if (to.wants(0)) {
    const Slot da = to.slot(0);
    const double beta = da.accumulate ? 1 : 0;
    if (transpose_a)
      multiply({.a = b, .b = dc, .c = da.tensor, .transpose_a = transpose_b, .transpose_b = true, .beta = beta});
    else multiply({.a = dc, .b = b, .c = da.tensor, .transpose_b = !transpose_b, .beta = beta});
  }
  if (to.wants(1)) {
    const Slot db = to.slot(1);
    const double beta = db.accumulate ? 1 : 0;
    if (transpose_b)
      multiply({.a = dc, .b = a, .c = db.tensor, .transpose_a = true, .transpose_b = transpose_a, .beta = beta});
    else multiply({.a = a, .b = dc, .c = db.tensor, .transpose_a = !transpose_a, .beta = beta});
  }
}

void sum_rows(Cpu, const Tensor& x, const Tensor& to, bool accumulate) {
  const Tensor rows = x.matrix();
  check(to.shape() == Shape{rows.size(1)}, "sum_rows: x {} into {}", to_string(x.shape()), to_string(to.shape()));
  const int64_t n = rows.size(1), m = rows.size(0), stride_x = stride(rows);
  with_float("sum_rows", x.dtype(), [&]<class T>(T) {
    const T* data = rows.data<T>();
    T* sum = to.data<T>();
    // Each thread sums whole columns, in row order: the result does not depend on the number of threads. Sums of a few
    // rows are added in f64, so that many rows lose nothing.
    constexpr int64_t block = 64, few = 64;
#pragma omp parallel for
    for (int64_t j = 0; j < n; j += block) {
      const int64_t width = std::min(block, n - j);
      double total[block] = {};
      for (int64_t first = 0; first < m; first += few) {
        T partial[block] = {};
        for (int64_t i = first; i < std::min(m, first + few); ++i)
          for (int64_t c = 0; c < width; ++c) partial[c] += data[i * stride_x + j + c];
        for (int64_t c = 0; c < width; ++c) total[c] += static_cast<double>(partial[c]);
      }
      for (int64_t c = 0; c < width; ++c) sum[j + c] = (accumulate ? sum[j + c] : T{0}) + static_cast<T>(total[c]);
    }
  });
}

}  // namespace adder
