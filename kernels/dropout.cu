// Floor: x read and y written once, at memory speed; ten Philox rounds for four elements stay below it.
#include "adder/kernels/dropout.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/core/random.h"

namespace adder {
namespace {

constexpr int threads = 256;

struct Mask {
  const int32_t* position;  // step, first batch row
  uint64_t key;
  uint32_t threshold;
  float scale;
};

// A thread makes one Philox block: the four elements of the global batch that it decides.
template <class T>
__global__ void drop(Mask mask, const T* x, T* y, int64_t count, int64_t row) {
  const int64_t first = mask.position[1] * row;
  const auto step = static_cast<uint64_t>(static_cast<int64_t>(mask.position[0]));
  const auto block = static_cast<uint64_t>(first / 4 + int64_t{blockIdx.x} * threads + threadIdx.x);
  const auto words = philox({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                             static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)},
                            {static_cast<uint32_t>(mask.key), static_cast<uint32_t>(mask.key >> 32)});
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t i = static_cast<int64_t>(4 * block) + j - first;
    if (i >= 0 && i < count) y[i] = element<T>(words[j] >= mask.threshold ? value(x[i]) * mask.scale : 0.0f);
  }
}

}  // namespace

void dropout(Cuda on, const Dropout& op, const Tensor& x, const Tensor& y) {
  const int64_t count = x.count();
  if (count == 0) return;
  const Mask mask{op.position.data<int32_t>(), op.key, static_cast<uint32_t>(op.p * 0x1p32),
                  static_cast<float>(1 / (1 - op.p))};
  with_gpu_float("Dropout", x.dtype(), [&]<class T>(T) {
    launch(drop<T>, blocks(count / 4 + 2, threads), threads, 0, on, mask, x.data<T>(), y.data<T>(), count,
           count / x.size(0));
  });
}

}  // namespace adder
