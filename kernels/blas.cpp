#include "adder/kernels/blas.h"

#include "adder/core/error.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <limits>

namespace adder::blas {
namespace {

int to_int(int64_t n) {
  check(n <= std::numeric_limits<int>::max(), "a matrix with a size or stride of {} is too large for BLAS", n);
  return static_cast<int>(n);
}

CBLAS_TRANSPOSE order(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

void product(int64_t m, int64_t n, int64_t k, float alpha, Matrix<float> a, Matrix<float> b, float beta, float* c,
             int64_t stride_c) {
  cblas_sgemm(CblasRowMajor, order(a.transposed), order(b.transposed), to_int(m), to_int(n), to_int(k), alpha, a.data,
              to_int(a.stride), b.data, to_int(b.stride), beta, c, to_int(stride_c));
}
void product(int64_t m, int64_t n, int64_t k, double alpha, Matrix<double> a, Matrix<double> b, double beta, double* c,
             int64_t stride_c) {
  cblas_dgemm(CblasRowMajor, order(a.transposed), order(b.transposed), to_int(m), to_int(n), to_int(k), alpha, a.data,
              to_int(a.stride), b.data, to_int(b.stride), beta, c, to_int(stride_c));
}

// A build of OpenBLAS with threads of its own would start them from each of ours: it gets one, and ours share the rows.
bool has_own_threads() {
  static const bool own = [] {
    constexpr int pthreads = 1;
    if (openblas_get_parallel() != pthreads) return false;
    openblas_set_num_threads(1);
    return true;
  }();
  return own;
}

}  // namespace

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, T alpha, Matrix<T> a, Matrix<T> b, T beta, T* c, int64_t stride_c) {
  constexpr int64_t large = int64_t{1} << 20;
  if (!has_own_threads() || omp_in_parallel() || m * n * k < large)
    return product(m, n, k, alpha, a, b, beta, c, stride_c);
  const int64_t parts = omp_get_max_threads(), rows = (m + parts - 1) / parts;
#pragma omp parallel for
  for (int64_t i = 0; i < m; i += rows)
    product(std::min(rows, m - i), n, k, alpha, {a.data + i * (a.transposed ? 1 : a.stride), a.stride, a.transposed}, b,
            beta, c + i * stride_c, stride_c);
}
template void gemm(int64_t, int64_t, int64_t, float, Matrix<float>, Matrix<float>, float, float*, int64_t);
template void gemm(int64_t, int64_t, int64_t, double, Matrix<double>, Matrix<double>, double, double*, int64_t);

}  // namespace adder::blas
