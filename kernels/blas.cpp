#include "adder/kernels/blas.h"

#include "adder/core/error.h"

#include <cblas.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string_view>

extern "C" {  // OpenBLAS's choice of kernels: not in its header, but in every build for several kinds of processor
[[gnu::weak]] void gotoblas_dynamic_init();
[[gnu::weak]] void gotoblas_dynamic_quit();
}

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

// OpenBLAS goes by the model of the processor; for one newer than itself it falls back to SSE3 and a fraction of the
// speed. Then it is asked by name for what the processor has. An OPENBLAS_CORETYPE of the user's own stays.
void choose_kernels() {
#if defined(__x86_64__)
  if (!gotoblas_dynamic_init || !gotoblas_dynamic_quit || std::getenv("OPENBLAS_CORETYPE")) return;
  if (std::string_view(openblas_get_corename()) != "Prescott" || !__builtin_cpu_supports("avx2")) return;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  setenv("OPENBLAS_CORETYPE", wide ? "SkylakeX" : "Haswell", 0);
  gotoblas_dynamic_quit();
  gotoblas_dynamic_init();
  unsetenv("OPENBLAS_CORETYPE");
#endif
}

// Before the first product. A build with threads of its own would start them from each of ours: it gets one.
void prepare() {
  static const bool prepared = [] {
    choose_kernels();
    constexpr int pthreads = 1;
    if (openblas_get_parallel() == pthreads) openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(prepared);
}

}  // namespace

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, T alpha, Matrix<T> a, Matrix<T> b, T beta, T* c, int64_t stride_c) {
  prepare();
  constexpr int64_t large = int64_t{1} << 20, tile = 16;
  const int64_t threads = omp_in_parallel() || m * n * k < large ? 1 : omp_get_max_threads();
  if (threads == 1) return product(m, n, k, alpha, a, b, beta, c, stride_c);
  // Our threads share the longer side of c: less waiting than where OpenBLAS shares out one product.
  const bool by_rows = m >= n;
  const int64_t size = by_rows ? m : n, part = ((size + threads - 1) / threads + tile - 1) / tile * tile;
#pragma omp parallel for schedule(static, 1)
  for (int64_t i = 0; i < size; i += part) {
    const int64_t count = std::min(part, size - i);
    if (by_rows)
      product(count, n, k, alpha, {a.data + i * (a.transposed ? 1 : a.stride), a.stride, a.transposed}, b, beta,
              c + i * stride_c, stride_c);
    else
      product(m, count, k, alpha, a, {b.data + i * (b.transposed ? b.stride : 1), b.stride, b.transposed}, beta, c + i,
              stride_c);
  }
}
template void gemm(int64_t, int64_t, int64_t, float, Matrix<float>, Matrix<float>, float, float*, int64_t);
template void gemm(int64_t, int64_t, int64_t, double, Matrix<double>, Matrix<double>, double, double*, int64_t);

}  // namespace adder::blas
