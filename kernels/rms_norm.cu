// A block of a few warps takes a row at a time and holds it in registers, 24 channels a thread, so that memory is
// touched once, the sums over the row pass few barriers or none, and rows of other blocks are on their way meanwhile:
// at 768 channels a warp takes a row. A block takes many rows, so that the weight and the sums of dweight stay in
// registers too.
// Floor at memory speed, N = rows x channels. bf16: forward 12 N bytes (x 2, residual 4 in; y 2, s 4 out; 8 N without a
// residual), backward 16 N (s 4, dy 2, ds 4 in; 2 and 4 out). f32: 16 N each.
// dweight: sum_rows sums what the blocks leave.
#include "adder/kernels/rms_norm.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/matmul.h"
#include "adder/kernels/warp.cuh"

#include <algorithm>

namespace adder {
namespace {

constexpr int n = 4;          // channels in a piece, of bf16 and of f32
constexpr int most_held = 6;  // pieces of a thread

// So that a thread may have 168 registers where it holds most, and 128 elsewhere.
constexpr int most_threads(int held) { return held == most_held ? 384 : 512; }

template <class T>
using Row = Elements<T, n>;

// T is the type of x and y; the stream is f32.
template <class T>
struct Forward {
  Row<T> x, y;                       // x: undefined if the residual is s already
  Row<float> residual, sum, weight;  // sum: undefined if it is one of them
  int64_t rows;
  int channels;
  float eps;
};

// The piece k of the row that this thread holds: where it starts in the row.
__device__ int piece_start(int k) {
  return (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * n;
}

template <class T, int held>
__global__ void __launch_bounds__(most_threads(held)) forward(Forward<T> p) {
  let_next_start();
  wait_for_previous();
  float weight[held][n];
#pragma unroll
  for (int k = 0; k < held; ++k) p.weight.line(0).load(piece_start(k), p.channels, weight[k]);
  for (int64_t i = blockIdx.x; i < p.rows; i += gridDim.x) {
    const int64_t start = i * p.channels;
    Lanes<T, n> x[held];
    float s[held][n] = {}, squares[1] = {0};
    if (p.x) {
#pragma unroll
      for (int k = 0; k < held; ++k) x[k] = p.x.line(start).load(piece_start(k), p.channels);
    }
    if (p.residual) {
#pragma unroll
      for (int k = 0; k < held; ++k) p.residual.line(start).load(piece_start(k), p.channels, s[k]);
    }
#pragma unroll
    for (int k = 0; k < held; ++k) {
#pragma unroll
      for (int c = 0; c < n; ++c) {
        if (p.x) s[k][c] = p.residual ? s[k][c] + x[k][c] : x[k][c];
        squares[0] += s[k][c] * s[k][c];
      }
      if (p.sum) p.sum.line(start).put(piece_start(k), p.channels, s[k]);
    }
    block_sum(squares);
    const float r = rsqrtf(squares[0] / static_cast<float>(p.channels) + p.eps);
#pragma unroll
    for (int k = 0; k < held; ++k) {
#pragma unroll
      for (int c = 0; c < n; ++c) s[k][c] *= r * weight[k][c];
      p.y.line(start).put(piece_start(k), p.channels, s[k]);
    }
  }
}

template <class T>
struct Backward {
  Row<T> dy, dx;
  Row<float> s, dsum, dresidual, weight;
  bool add_x, add_residual;
  float* partial;  // [blocks, channel], or null
  int64_t rows, rows_per_block;
  int channels;
  float eps;
};

template <class T, int held>
__global__ void __launch_bounds__(most_threads(held)) backward(Backward<T> p) {
  float weight[held][n], dweight[held][n] = {};
#pragma unroll
  for (int k = 0; k < held; ++k) p.weight.line(0).load(piece_start(k), p.channels, weight[k]);
  const int64_t last = min(p.rows, (int64_t{blockIdx.x} + 1) * p.rows_per_block);
  for (int64_t i = blockIdx.x * p.rows_per_block; i < last; ++i) {
    const int64_t start = i * p.channels;
    Lanes<T, n> dy[held];
    float s[held][n], ds[held][n] = {}, sums[2] = {0, 0};  // s², dy weight s
#pragma unroll
    for (int k = 0; k < held; ++k) {
      p.s.line(start).load(piece_start(k), p.channels, s[k]);
      dy[k] = p.dy.line(start).load(piece_start(k), p.channels);
    }
    if (p.dsum) {
#pragma unroll
      for (int k = 0; k < held; ++k) p.dsum.line(start).load(piece_start(k), p.channels, ds[k]);
    }
#pragma unroll
    for (int k = 0; k < held; ++k)
#pragma unroll
      for (int c = 0; c < n; ++c) {
        sums[0] += s[k][c] * s[k][c];
        sums[1] += dy[k][c] * weight[k][c] * s[k][c];
      }
    block_sum(sums);
    const float m = static_cast<float>(p.channels), r = rsqrtf(sums[0] / m + p.eps), mean = sums[1] / m * r * r;
#pragma unroll
    for (int k = 0; k < held; ++k) {
      float dx[n];  // put() may change what it is given
#pragma unroll
      for (int c = 0; c < n; ++c) {
        dweight[k][c] += dy[k][c] * (s[k][c] * r);
        ds[k][c] += r * (dy[k][c] * weight[k][c] - s[k][c] * mean);
        dx[c] = ds[k][c];
      }
      if (p.dx) p.dx.line(start).put(piece_start(k), p.channels, dx, p.add_x);
      if (p.dresidual) p.dresidual.line(start).put(piece_start(k), p.channels, ds[k], p.add_residual);
    }
  }
  if (p.partial == nullptr) return;
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c)
      if (const int j = piece_start(k) + c; j < p.channels)
        p.partial[int64_t{blockIdx.x} * p.channels + j] = dweight[k][c];
}

// Calls f(pieces that a thread holds, threads).
template <class F>
void with_held(int64_t channels, F&& f) {
  const auto parts = [](int64_t count, int64_t size) { return (count + size - 1) / size; };
  const int64_t pieces = parts(channels, n), warps = parts(pieces, 32 * most_held), held = parts(pieces, 32 * warps);
  if (warps * 32 > most_threads(most_held)) fail("RmsNorm: more than 9216 channels on the GPU");
  const int threads = static_cast<int>(32 * warps);
  if (held == 1) return f(std::integral_constant<int, 1>{}, threads);
  if (held == 2) return f(std::integral_constant<int, 2>{}, threads);
  if (held <= 4) return f(std::integral_constant<int, 4>{}, threads);
  return f(std::integral_constant<int, most_held>{}, threads);
}

// As many blocks as run at once on 132 processors, each of which has registers for `resident` threads.
int64_t most_at_once(int resident, int threads) { return 132 * std::clamp(resident / threads, 1, 32); }

}  // namespace

void rms_norm_forward(Cuda on, const RmsNorm& op, const Tensor& y, const Tensor& sum) {
  const int64_t channels = op.x.size(-1), rows = op.x.count() / channels;
  with_gpu_float("RmsNorm", y.dtype(), [&]<class T>(T) {
    const bool again = !sum, is_x = !again && !op.residual && sum.dtype() == op.x.dtype();
    const Forward<T> p{.x = Row<T>(again ? Tensor() : op.x, channels), .y = Row<T>(y, channels),
                       .residual = Row<float>(again ? op.x : op.residual, channels),
                       .sum = Row<float>(is_x ? Tensor() : sum, channels), .weight = Row<float>(op.weight, channels),
                       .rows = rows, .channels = static_cast<int>(channels), .eps = static_cast<float>(op.eps)};
    with_held(channels, [&](auto held, int threads) {
      const int64_t most = most_at_once(sizeof(T) == 2 ? 768 : 512, threads);
      const unsigned count = blocks(std::min(rows, most), 1);
      if (rows <= early_rows) launch_early(forward<T, held()>, count, threads, 0, on, p);
      else launch(forward<T, held()>, count, threads, 0, on, p);
    });
  });
}

void rms_norm_backward(Cuda on, const RmsNorm& op, const Tensor& dy, const Tensor& dsum, const RmsNormSlots& to) {
  const int64_t channels = op.x.size(-1), rows = op.x.count() / channels;
  with_held(channels, [&](auto held, int threads) {
    const int64_t most = most_at_once(held() > 4 ? 384 : held() > 2 ? 512 : 768, threads);
    const int64_t each = std::max<int64_t>(1, (rows + most - 1) / most), count = (rows + each - 1) / each;
    const Tensor partial = to.weight.tensor ? Tensor({count, channels}, DType::f32, Device::cuda) : Tensor();
    with_gpu_float("RmsNorm", dy.dtype(), [&]<class T>(T) {
      const Backward<T> p{.dy = Row<T>(dy, channels), .dx = Row<T>(to.x.tensor, channels),
                          .s = Row<float>(op.x, channels), .dsum = Row<float>(dsum, channels),
                          .dresidual = Row<float>(to.residual.tensor, channels),
                          .weight = Row<float>(op.weight, channels), .add_x = to.x.accumulate,
                          .add_residual = to.residual.accumulate, .partial = partial ? partial.data<float>() : nullptr,
                          .rows = rows, .rows_per_block = each, .channels = static_cast<int>(channels),
                          .eps = static_cast<float>(op.eps)};
      launch(backward<T, held()>, blocks(count, 1), threads, 0, on, p);
    });
    if (partial) sum_rows(on, partial, to.weight.tensor, to.weight.accumulate);
  });
}

}  // namespace adder
