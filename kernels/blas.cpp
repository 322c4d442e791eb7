#include "adder/kernels/blas.h"

#include "adder/core/error.h"

#include <cblas.h>

#include <algorithm>
#include <limits>

namespace adder::blas {
namespace {

int to_int(int64_t n) {
  check(n <= std::numeric_limits<int>::max(), "a matrix with a size or stride of {} is too large for BLAS", n);
  return static_cast<int>(n);
}

// A build of OpenBLAS with threads of its own would start them from each of ours.
void check_threading() {
  constexpr int openmp = 2;
  static const bool right = openblas_get_parallel() == openmp || openblas_get_parallel() == 0;
  check(right, "OpenBLAS was built with its own threads; install the one built with OpenMP (libopenblas0-openmp)");
}

CBLAS_TRANSPOSE order(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

}  // namespace

template <>
void gemm(int64_t m, int64_t n, int64_t k, float alpha, Matrix<float> a, Matrix<float> b, float beta, float* c,
          int64_t stride_c) {
  check_threading();
  cblas_sgemm(CblasRowMajor, order(a.transposed), order(b.transposed), to_int(m), to_int(n), to_int(k), alpha, a.data,
              to_int(a.stride), b.data, to_int(b.stride), beta, c, to_int(stride_c));
}

template <>
void gemm(int64_t m, int64_t n, int64_t k, double alpha, Matrix<double> a, Matrix<double> b, double beta, double* c,
          int64_t stride_c) {
  check_threading();
  cblas_dgemm(CblasRowMajor, order(a.transposed), order(b.transposed), to_int(m), to_int(n), to_int(k), alpha, a.data,
              to_int(a.stride), b.data, to_int(b.stride), beta, c, to_int(stride_c));
}

}  // namespace adder::blas
