// The sum over rows. Floor: x read once at memory speed.
#include "adder/kernels/matmul.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"

#include <algorithm>

namespace adder {
namespace {

constexpr int columns = 32, lanes = 8;  // a block: pieces side by side, and rows that are summed beside each other

// Rows [blockIdx.y * each, ...) of x into row blockIdx.y of `to`; the order is that of the lanes, then of the rows.
template <class T, class To>
__global__ void sum_block(Elements<T> x, int64_t rows, int width, int64_t each, Elements<To> to, bool accumulate) {
  constexpr int n = Elements<T>::n;
  __shared__ float parts[lanes][columns * n];
  const int j = static_cast<int>((blockIdx.x * columns + threadIdx.x) * n);
  const int64_t first = blockIdx.y * each, last = min(rows, first + each);
  float sum[n] = {};
  if (j < width) {
#pragma unroll 4
    for (int64_t i = first + threadIdx.y; i < last; i += lanes) {
      float row[n];
      x.line(i * width).load(j, width, row);
#pragma unroll
      for (int c = 0; c < n; ++c) sum[c] += row[c];
    }
  }
#pragma unroll
  for (int c = 0; c < n; ++c) parts[threadIdx.y][threadIdx.x * n + c] = sum[c];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.y * columns + threadIdx.x); c < columns * n; c += columns * lanes) {
    const int column = static_cast<int>(blockIdx.x * columns * n) + c;
    if (column >= width) continue;
    To* target = to(int64_t{blockIdx.y} * width + column);
    float all = accumulate ? value(*target) : 0.0f;
    float part = 0;
#pragma unroll
    for (int lane = 0; lane < lanes; ++lane) part += parts[lane][c];
    *target = element<To>(all + part);
  }
}

template <class T, class To>
void run(Cuda on, const Tensor& x, int64_t splits, const Tensor& to, bool accumulate) {
  const int64_t rows = x.size(0), width = x.size(1), each = (rows + splits - 1) / splits;
  if (width > 1 << 30) fail("sum_rows: more than 2^30 columns on the GPU");
  launch(sum_block<T, To>, dim3(blocks(width, columns * Elements<T>::n), static_cast<unsigned>(splits)),
         dim3(columns, lanes), 0, on, Elements<T>(x, width), rows, static_cast<int>(width), each, Elements<To>(to), accumulate);
}

}  // namespace

void sum_rows(Cuda on, const Tensor& x, const Tensor& to, bool accumulate) {
  const Tensor rows = x.matrix();
  if (to.shape() != Shape{rows.size(1)}) fail("sum_rows: the sums are not as many as the columns");
  if (rows.count() == 0) return accumulate ? void() : fill(to, 0);
  // Parts of at least 64 rows, of 512 beyond 128 parts; at most 1024 parts. They depend on the shape alone. Few rows are
  // a matter of latency: a thread sums 8 of 64, then 2 of 16 parts.
  const int64_t count = rows.size(0);
  const int64_t splits = std::clamp<int64_t>(std::max(std::min<int64_t>(count / 64, 128), count / 512), 1, 1024);
  Tensor from = rows;
  if (splits > 1 || (x.dtype() == DType::bf16 && to.dtype() == DType::bf16)) {
    from = Tensor({splits, rows.size(1)}, DType::f32, Device::cuda);
    with_gpu_float("sum_rows", x.dtype(), [&]<class T>(T) { run<T, float>(on, rows, splits, from, false); });
  }
  if (from.dtype() == DType::bf16) return run<bf16, float>(on, from, 1, to, accumulate);
  with_gpu_float("sum_rows", to.dtype(), [&]<class T>(T) { run<float, T>(on, from, 1, to, accumulate); });
}

}  // namespace adder
