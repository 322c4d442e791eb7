// The one place that calls BLAS.
#pragma once

#include <cstdint>

namespace adder::blas {

/// A row-major operand: element (i, j) at data[i * stride + j]; `transposed` says that the product takes it transposed.
template <class T>
struct Matrix {
  const T* data;
  int64_t stride;
  bool transposed = false;
};

/// c[m, n] = alpha op(a)[m, k] op(b)[k, n] + beta c, row-major, c with its own stride. beta = 0 overwrites NaN. Inside
/// a parallel region it runs on the calling thread. T is float or double.
template <class T>
void gemm(int64_t m, int64_t n, int64_t k, T alpha, Matrix<T> a, Matrix<T> b, T beta, T* c, int64_t stride_c);

}  // namespace adder::blas
