// Cost: reads both, writes one: 12 bytes an element in f32, 10 from bf16 into f32. Floor: those bytes at memory speed.
#include "adder/kernels/accumulate.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"

namespace adder {
namespace {

constexpr int threads = 256;

// Four elements a thread: one access of f32, half of one of bf16.
template <class F, class T>
__global__ void add_to(Elements<F> from, Elements<T> to) {
  const int64_t i = (int64_t{blockIdx.x} * threads + threadIdx.x) * Elements<T>::n, end = to.count();
  if (i >= end) return;
  float x[Elements<T>::n];
  if constexpr (Elements<F>::n == Elements<T>::n) {
    from.load(i, end, x);
  } else {
#pragma unroll
    for (int j = 0; j < Elements<T>::n; ++j) x[j] = i + j < end ? value(*from(i + j)) : 0.0f;
  }
  to.put(i, end, x, true);
}

template <class F, class T>
void run(Cuda on, const Tensor& from, const Tensor& to) {
  launch(add_to<F, T>, blocks(to.count(), threads * Elements<T>::n), threads, 0, on, Elements<F>(from),
         Elements<T>(to));
}

}  // namespace

void accumulate(Cuda on, const Tensor& from, const Tensor& to) {
  if (to.dtype() == DType::f32 && from.dtype() == DType::bf16) return run<bf16, float>(on, from, to);
  with_gpu_float("accumulate", to.dtype(), [&]<class T>(T) { run<T, T>(on, from, to); });
}

}  // namespace adder
