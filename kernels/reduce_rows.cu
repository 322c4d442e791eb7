// Cost: reads the rows and writes one: (size + 1) elements for each of n. Floor: those bytes at memory speed.
#include "adder/kernels/reduce_rows.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"

#include <type_traits>

namespace adder {
namespace {

constexpr int threads = 256;

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, int32_t>, int64_t, double>;

template <class T>
__device__ Wide<T> wide(T x) {
  if constexpr (std::is_same_v<T, bf16>) return value(x);
  else return x;
}

template <class T>
__device__ T rounded(Wide<T> x) {
  if constexpr (std::is_same_v<T, bf16>) return element<bf16>(static_cast<float>(x));
  else return static_cast<T>(x);
}

// An element a thread: neighbours read neighbours, in every row.
template <class T>
__global__ void reduce(const T* rows, const T* mine, int64_t own, int64_t size, int64_t n, Reduce by, T* to) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= n) return;
  Wide<T> result{};
  for (int64_t r = 0; r < size; ++r) {
    const Wide<T> x = wide(r == own ? mine[i] : rows[r * n + i]);
    if (r == 0) result = x;
    else if (by == Reduce::sum) result += x;
    else result = result >= x || result != result ? result : x;
  }
  to[i] = rounded<T>(result);
}

template <class T>
void run(Cuda on, const Tensor& rows, const Tensor& mine, int64_t own, Reduce by, const Tensor& to) {
  launch(reduce<T>, blocks(to.count(), threads), threads, 0, on, rows.data<T>(), mine.data<T>(), own, rows.size(0),
         to.count(), by, to.data<T>());
}

}  // namespace

void reduce_rows(Cuda on, const Tensor& rows, const Tensor& mine, int64_t own, Reduce by, const Tensor& to) {
  switch (to.dtype()) {
    case DType::f32: return run<float>(on, rows, mine, own, by, to);
    case DType::f64: return run<double>(on, rows, mine, own, by, to);
    case DType::bf16: return run<bf16>(on, rows, mine, own, by, to);
    case DType::i32: return run<int32_t>(on, rows, mine, own, by, to);
  }
}

}  // namespace adder
