// A block takes a row at a time and holds it in registers, so that memory is touched once.
// Floor at memory speed, N = rows x channels. bf16: forward 12 N bytes (x 2, residual 4 in; y 2, s 4 out; 8 N without a
// residual), backward 16 N (s 4, dy 2, ds 4 in; 2 and 4 out). f32: 16 N each.
// dweight: each block sums its rows in registers, sum_rows sums the blocks.
#include "adder/kernels/rms_norm.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/matmul.h"
#include "adder/kernels/warp.cuh"

#include <algorithm>

namespace adder {
namespace {

constexpr int most_threads = 512;
constexpr int n = 4;  // channels in a piece, of bf16 and of f32

template <class T>
using Row = Elements<T, n>;

// T is the type of x and y; the stream is f32.
template <class T>
struct Forward {
  Row<T> x, y;                       // x: undefined if the residual is s already
  Row<float> residual, sum, weight;  // sum: undefined if it is one of them
  int64_t channels;
  float eps;
};

// The piece k of the row that this thread holds: where it starts in the row.
__device__ int64_t piece_start(int k) { return (int64_t{k} * blockDim.x + threadIdx.x) * n; }

template <class T, int held>
__global__ void __launch_bounds__(most_threads) forward(Forward<T> p) {
  const int64_t start = int64_t{blockIdx.x} * p.channels, end = start + p.channels;
  float s[held][n] = {}, squares[1] = {0};
#pragma unroll
  for (int k = 0; k < held; ++k)
    if (const int64_t j = piece_start(k); p.residual && j < p.channels) p.residual.load(start + j, end, s[k]);
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int64_t j = piece_start(k);
    if (j >= p.channels) break;
    if (p.x) {
      float x[n];
      p.x.load(start + j, end, x);
#pragma unroll
      for (int c = 0; c < n; ++c) s[k][c] = p.residual ? s[k][c] + x[c] : x[c];
    }
#pragma unroll
    for (int c = 0; c < n; ++c) squares[0] += s[k][c] * s[k][c];
    if (p.sum) p.sum.store(start + j, end, s[k]);
  }
  block_sum(squares);
  const float r = rsqrtf(squares[0] / static_cast<float>(p.channels) + p.eps);
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int64_t j = piece_start(k);
    if (j >= p.channels) break;
    float weight[n];
    p.weight.load(j, p.channels, weight);
#pragma unroll
    for (int c = 0; c < n; ++c) s[k][c] *= r * weight[c];
    p.y.store(start + j, end, s[k]);
  }
}

template <class T>
struct Backward {
  Row<T> dy, dx;
  Row<float> s, dsum, dresidual, weight;
  bool add_x, add_residual;
  float* partial;  // [blocks, channel], or null
  int64_t rows, rows_per_block, channels;
  float eps;
};

template <class T, int held>
__global__ void __launch_bounds__(most_threads) backward(Backward<T> p) {
  float dweight[held][n] = {};
  const int64_t last = min(p.rows, (int64_t{blockIdx.x} + 1) * p.rows_per_block);
  for (int64_t i = blockIdx.x * p.rows_per_block; i < last; ++i) {
    const int64_t start = i * p.channels, end = start + p.channels;
    float s[held][n], d[held][n], ds[held][n] = {}, sums[2] = {0, 0};  // s², dy weight s
#pragma unroll
    for (int k = 0; k < held; ++k) {  // nothing waits for these yet
      const int64_t j = piece_start(k);
      if (j >= p.channels) break;
      p.s.load(start + j, end, s[k]);
      if (p.dsum) p.dsum.load(start + j, end, ds[k]);
    }
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int64_t j = piece_start(k);
      if (j >= p.channels) break;
      float weight[n];
      p.weight.load(j, p.channels, weight);
      p.dy.load(start + j, end, d[k]);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        sums[0] += s[k][c] * s[k][c];
        sums[1] += d[k][c] * weight[c] * s[k][c];
      }
    }
    block_sum(sums);
    const float m = static_cast<float>(p.channels), r = rsqrtf(sums[0] / m + p.eps), mean = sums[1] / m * r * r;
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int64_t j = piece_start(k);
      if (j >= p.channels) break;
      float weight[n];
      p.weight.load(j, p.channels, weight);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        dweight[k][c] += d[k][c] * (s[k][c] * r);
        ds[k][c] += r * (d[k][c] * weight[c] - s[k][c] * mean);
        d[k][c] = ds[k][c];  // put() may change what it is given
      }
      if (p.dx) p.dx.put(start + j, end, d[k], p.add_x);
      if (p.dresidual) p.dresidual.put(start + j, end, ds[k], p.add_residual);
    }
  }
  if (p.partial == nullptr) return;
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c)
      if (const int64_t j = piece_start(k) + c; j < p.channels)
        p.partial[blockIdx.x * p.channels + j] = dweight[k][c];
}

// Calls f(pieces that a thread holds, threads): 8 elements each, 32 beyond 4096 channels, which spills some registers.
template <class F>
void with_held(int64_t channels, F&& f) {
  const auto threads = [&](int64_t elements) {
    return static_cast<int>((channels + elements * 32 - 1) / (elements * 32) * 32);
  };
  if (threads(8) <= most_threads) return f(std::integral_constant<int, 2>{}, threads(8));
  if (threads(32) <= most_threads) return f(std::integral_constant<int, 8>{}, threads(32));
  fail("RmsNorm: more than 16384 channels on the GPU");
}

}  // namespace

void rms_norm_forward(Cuda on, const RmsNorm& op, const Tensor& y, const Tensor& sum) {
  const int64_t channels = op.x.size(-1);
  with_gpu_float("RmsNorm", y.dtype(), [&]<class T>(T) {
    const bool again = !sum, is_x = !again && !op.residual && sum.dtype() == op.x.dtype();
    const Forward<T> p{.x = Row<T>(again ? Tensor() : op.x, channels), .y = Row<T>(y, channels),
                       .residual = Row<float>(again ? op.x : op.residual, channels),
                       .sum = Row<float>(is_x ? Tensor() : sum, channels), .weight = Row<float>(op.weight, channels),
                       .channels = channels, .eps = static_cast<float>(op.eps)};
    with_held(channels, [&](auto held, int threads) {
      launch(forward<T, held()>, blocks(op.x.count() / channels, 1), threads, 0, on, p);
    });
  });
}

void rms_norm_backward(Cuda on, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const RmsNormSlots& to) {
  const int64_t channels = op.x.size(-1), rows = op.x.count() / channels;
  with_held(channels, [&](auto held, int threads) {
    // As many blocks as run at once on 132 processors: each leaves a row of partial sums.
    const int64_t most = 132 * std::clamp(960 / threads, 1, 16);
    const int64_t each = std::max<int64_t>(1, (rows + most - 1) / most), count = (rows + each - 1) / each;
    const Tensor partial = to.weight.tensor ? Tensor({count, channels}, DType::f32, Device::cuda) : Tensor();
    with_gpu_float("RmsNorm", dy.dtype(), [&]<class T>(T) {
      const Backward<T> p{.dy = Row<T>(dy, channels), .dx = Row<T>(to.x.tensor, channels),
                          .s = Row<float>(op.x, channels), .dsum = Row<float>(dsum, channels),
                          .dresidual = Row<float>(to.residual.tensor, channels),
                          .weight = Row<float>(op.weight, channels), .add_x = to.x.accumulate,
                          .add_residual = to.residual.accumulate, .partial = partial ? partial.data<float>() : nullptr,
                          .rows = rows, .rows_per_block = each, .channels = channels,
                          .eps = static_cast<float>(op.eps)};
      launch(backward<T, held()>, blocks(count, 1), threads, 0, on, p);
    });
    if (partial) sum_rows(on, partial, to.weight.tensor, to.weight.accumulate);
  });
}

}  // namespace adder
