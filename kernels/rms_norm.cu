// A block takes a row at a time and holds it in registers, so that memory is touched once.
// Floor, N = rows x channels, bf16: forward 8 N bytes (x, residual in; y, s out; 4 N without a residual), backward 8 N
// (s, dy, ds in; one gradient out) at memory speed. dweight: each block sums its rows in registers, sum_rows the blocks.
#include "adder/kernels/rms_norm.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/matmul.h"
#include "adder/kernels/warp.cuh"

#include <algorithm>

namespace adder {
namespace {

constexpr int most_threads = 512;
constexpr int64_t most_blocks = 2048;  // of backward: each leaves one row of partial sums

// W is the type of the weight: that of x, or f32.
template <class T, class W>
struct Forward {
  Elements<T> x, residual, y, sum;
  const W* weight;
  int64_t channels;
  float eps;
};

// The piece k of the row that this thread holds: where it starts in the row.
__device__ int64_t piece_start(int k, int n) { return (int64_t{k} * blockDim.x + threadIdx.x) * n; }

template <class T, class W, int held>
__global__ void __launch_bounds__(most_threads) forward(Forward<T, W> p) {
  constexpr int n = Elements<T>::n;
  const int64_t start = int64_t{blockIdx.x} * p.channels, end = start + p.channels;
  float s[held][n], squares[1] = {0};
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int64_t j = piece_start(k, n);
    if (j >= p.channels) break;
    p.x.load(start + j, end, s[k]);
    if (p.residual) {
      float add[n];
      p.residual.load(start + j, end, add);
#pragma unroll
      for (int c = 0; c < n; ++c) s[k][c] = value(element<T>(s[k][c] + add[c]));  // as backward will read it
      p.sum.store(start + j, end, s[k]);
    }
#pragma unroll
    for (int c = 0; c < n; ++c) squares[0] += s[k][c] * s[k][c];
  }
  block_sum(squares);
  const float r = rsqrtf(squares[0] / static_cast<float>(p.channels) + p.eps);
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int64_t j = piece_start(k, n);
    if (j >= p.channels) break;
#pragma unroll
    for (int c = 0; c < n; ++c) s[k][c] *= j + c < p.channels ? r * value(p.weight[j + c]) : 0.0f;
    p.y.store(start + j, end, s[k]);
  }
}

template <class T, class W>
struct Backward {
  Elements<T> s, dy, dsum, ds;
  const W* weight;
  float* partial;  // [blocks, channel], or null
  int64_t rows, rows_per_block, channels;
  float eps;
  bool accumulate;
};

template <class T, class W, int held>
__global__ void __launch_bounds__(most_threads) backward(Backward<T, W> p) {
  constexpr int n = Elements<T>::n;
  float dweight[held][n] = {};
  const int64_t last = min(p.rows, (int64_t{blockIdx.x} + 1) * p.rows_per_block);
  for (int64_t i = blockIdx.x * p.rows_per_block; i < last; ++i) {
    const int64_t start = i * p.channels, end = start + p.channels;
    float s[held][n], d[held][n], sums[2] = {0, 0};  // s², dy weight s
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int64_t j = piece_start(k, n);
      if (j >= p.channels) break;
      p.s.load(start + j, end, s[k]);
      p.dy.load(start + j, end, d[k]);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        const float weight = j + c < p.channels ? value(p.weight[j + c]) : 0.0f;
        sums[0] += s[k][c] * s[k][c];
        sums[1] += d[k][c] * weight * s[k][c];
      }
    }
    block_sum(sums);
    const float m = static_cast<float>(p.channels), r = rsqrtf(sums[0] / m + p.eps), mean = sums[1] / m * r * r;
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int64_t j = piece_start(k, n);
      if (j >= p.channels) break;
      float arrived[n] = {};
      if (p.dsum) p.dsum.load(start + j, end, arrived);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        const float weight = j + c < p.channels ? value(p.weight[j + c]) : 0.0f;
        dweight[k][c] += d[k][c] * (s[k][c] * r);
        arrived[c] += r * (d[k][c] * weight - s[k][c] * mean);
      }
      if (p.ds) p.ds.put(start + j, end, arrived, p.accumulate);
    }
  }
  if (p.partial == nullptr) return;
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c)
      if (const int64_t j = piece_start(k, n) + c; j < p.channels)
        p.partial[blockIdx.x * p.channels + j] = dweight[k][c];
}

// Calls f(pieces that a thread holds, threads): 16 elements each, more for very wide rows.
template <class T, class F>
void with_held(int64_t channels, F&& f) {
  constexpr int few = 16 / Elements<T>::n, many = 32 / Elements<T>::n;
  const auto threads = [&](int64_t elements) {
    return static_cast<int>((channels + elements * 32 - 1) / (elements * 32) * 32);
  };
  if (threads(16) <= most_threads) return f(std::integral_constant<int, few>{}, threads(16));
  if (threads(32) <= most_threads) return f(std::integral_constant<int, many>{}, threads(32));
  fail("RmsNorm: more than 16384 channels on the GPU");
}

template <class F>
void with_types(DType x, DType weight, F&& f) {
  if (x == DType::bf16 && weight == DType::f32) return f(bf16{}, float{});
  with_gpu_float("RmsNorm", x, [&]<class T>(T) { f(T{}, T{}); });
}

}  // namespace

void rms_norm_forward(Cuda on, const RmsNorm& op, const Tensor& y, const Tensor& sum) {
  const int64_t n = op.x.size(-1);
  with_types(y.dtype(), op.weight.dtype(), [&]<class T, class W>(T, W) {
    const Forward<T, W> p{.x = Elements<T>(op.x, n), .residual = Elements<T>(op.residual, n), .y = Elements<T>(y, n),
                          .sum = Elements<T>(sum, n), .weight = op.weight.data<W>(), .channels = n,
                          .eps = static_cast<float>(op.eps)};
    with_held<T>(n, [&](auto held, int threads) {
      launch(forward<T, W, held()>, blocks(op.x.count() / n, 1), threads, 0, on, p);
    });
  });
}

void rms_norm_backward(Cuda on, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const Slot& ds,
                       const Slot& dweight) {
  const int64_t n = op.x.size(-1), rows = op.x.count() / n;
  const int64_t each = std::max<int64_t>(1, (rows + most_blocks - 1) / most_blocks), count = (rows + each - 1) / each;
  const Tensor partial = dweight.tensor ? Tensor({count, n}, DType::f32, Device::cuda) : Tensor();
  with_types(dy.dtype(), op.weight.dtype(), [&]<class T, class W>(T, W) {
    const Backward<T, W> p{.s = Elements<T>(op.x, n), .dy = Elements<T>(dy, n), .dsum = Elements<T>(dsum, n),
                           .ds = Elements<T>(ds.tensor, n), .weight = op.weight.data<W>(),
                           .partial = partial ? partial.data<float>() : nullptr, .rows = rows, .rows_per_block = each,
                           .channels = n, .eps = static_cast<float>(op.eps), .accumulate = ds.accumulate};
    with_held<T>(n, [&](auto held, int threads) {
      launch(backward<T, W, held()>, blocks(count, 1), threads, 0, on, p);
    });
  });
  if (partial) sum_rows(on, partial, dweight.tensor, dweight.accumulate);
}

}  // namespace adder
