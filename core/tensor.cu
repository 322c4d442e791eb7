// fill and copy within the GPU. Floor: the bytes read and written at memory speed.
#include "adder/core/copy.h"
#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"

namespace adder {
namespace {

constexpr int threads = 256;

// Any type to any other; through float only where one side is bf16.
template <class T, class F>
__device__ T converted(F x) {
  if constexpr (std::is_same_v<T, F>) return x;
  else if constexpr (std::is_same_v<F, bf16>) return converted<T>(value(x));
  else if constexpr (std::is_same_v<T, bf16>) return element<bf16>(static_cast<float>(x));
  else return static_cast<T>(x);
}

template <class T>
__global__ void fill_elements(Elements<T> to, double x) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i < to.count()) *to(i) = converted<T>(x);
}

// A thread copies some elements that are `threads` apart, so that several reads are under way.
constexpr int per_thread = 4;

template <class F, class T>
__global__ void copy_elements(Elements<F> from, Elements<T> to) {
  const int64_t first = int64_t{blockIdx.x} * (threads * per_thread) + threadIdx.x;
#pragma unroll
  for (int k = 0; k < per_thread; ++k)
    if (const int64_t i = first + k * threads; i < to.count()) *to(i) = converted<T>(*from(i));
}

template <class F>
void with_element(DType type, F&& f) {
  switch (type) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::bf16: return f(bf16{});
    case DType::i32: return f(int32_t{});
  }
}

// 16 bytes of any type.
struct alignas(16) Sixteen {
  uint64_t a, b;
};

__global__ void copy_sixteen(const Sixteen* from, int64_t from_row, Sixteen* to, int64_t to_row, int64_t width) {
  const int64_t j = int64_t{blockIdx.y} * threads + threadIdx.x, i = blockIdx.x;
  if (j < width) to[i * to_row + j] = from[i * from_row + j];
}

// Rows of equal length on both sides, all in units of 16 bytes.
bool copy_rows(Cuda on, const Tensor& from, const Tensor& to) {
  if (from.contiguous() && to.contiguous()) {
    check(cudaMemcpyAsync(to.address(), from.address(), static_cast<size_t>(from.count() * size_of(from.dtype())),
                          cudaMemcpyDeviceToDevice, on.stream), "a copy on the GPU");
    return true;
  }
  const Tensor& apart = from.contiguous() ? to : from;
  const int64_t row = apart.row(), unit = 16 / size_of(from.dtype()), width = row / unit;
  const auto pitch = [&](const Tensor& t) { return t.contiguous() ? row : t.pitch(); };
  const auto whole = [&](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0 && pitch(t) % unit == 0;
  };
  const bool same_rows = from.contiguous() || to.contiguous() || from.row() == to.row();
  if (!same_rows || row % unit != 0 || !whole(from) || !whole(to) || blocks(width, threads) > 65535) return false;
  launch(copy_sixteen, dim3(blocks(apart.rows(), 1), blocks(width, threads)), threads, 0, on,
         static_cast<const Sixteen*>(from.address()), pitch(from) / unit, static_cast<Sixteen*>(to.address()),
         pitch(to) / unit, width);
  return true;
}

}  // namespace

void fill(Cuda on, const Tensor& t, double value) {
  if (value == 0 && t.contiguous()) {
    check(cudaMemsetAsync(t.address(), 0, static_cast<size_t>(t.count() * size_of(t.dtype())), on.stream),
          "zeros on the GPU");
    return;
  }
  with_element(t.dtype(), [&]<class T>(T) {
    launch(fill_elements<T>, blocks(t.count(), threads), threads, 0, on, Elements<T>(t), value);
  });
}

void copy(Cuda on, const Tensor& from, const Tensor& to) {
  if (from.dtype() == to.dtype() && copy_rows(on, from, to)) return;
  with_element(from.dtype(), [&]<class F>(F) {
    with_element(to.dtype(), [&]<class T>(T) {
      launch(copy_elements<F, T>, blocks(to.count(), threads * per_thread), threads, 0, on, Elements<F>(from),
             Elements<T>(to));
    });
  });
}

}  // namespace adder
