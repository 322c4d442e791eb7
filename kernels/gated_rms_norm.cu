// A block takes a group of a row at a time and holds it in registers as it came, so that memory is touched once; the
// gate is opened twice, which costs less than the registers that would hold it.
// Floor at memory speed, N = rows x channels, bf16: forward 6 N bytes (y, z in; out), backward 10 N (y, z, dout in; dy,
// dz out). dweight: each block sums its rows in registers, sum_rows sums the blocks.
#include "adder/kernels/gated_rms_norm.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/math.cuh"
#include "adder/kernels/matmul.h"
#include "adder/kernels/warp.cuh"

#include <algorithm>

namespace adder {
namespace {

constexpr int most_threads = 512;

// What forward and backward read. Block b has group b % groups.
template <class T>
struct Operands {
  Elements<T> y, z;
  Elements<float, per_piece<T>> weight;
  int64_t groups, channels;  // channels of a group
  float eps;
  bool norm_first;

  __device__ float inverse_rms(float squares) const { return rsqrtf(squares / static_cast<float>(channels) + eps); }
};

// The piece k of the group that this thread holds: where it starts in the group.
template <class T>
__device__ int64_t piece_start(int k) {
  return (int64_t{k} * blockDim.x + threadIdx.x) * per_piece<T>;
}

template <class T, int held>
__global__ void __launch_bounds__(most_threads) forward(Operands<T> p, Elements<T> out) {
  constexpr int n = per_piece<T>;
  const int64_t start = int64_t{blockIdx.x} * p.channels, end = start + p.channels;
  const int64_t column = blockIdx.x % p.groups * p.channels;
  Lanes<T> y[held], z[held];
  float squares[1] = {0};
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int64_t i = start + piece_start<T>(k);
    y[k] = i < end ? p.y.load(i, end) : Lanes<T>{};
    z[k] = i < end ? p.z.load(i, end) : Lanes<T>{};
  }
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const float v = p.norm_first ? y[k][c] : y[k][c] * math::silu(z[k][c]);
      squares[0] += v * v;
    }
  block_sum(squares);
  const float r = p.inverse_rms(squares[0]);
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int64_t j = piece_start<T>(k);
    if (j >= p.channels) break;
    float weight[n], x[n];
    p.weight.load(column + j, column + p.channels, weight);
#pragma unroll
    for (int c = 0; c < n; ++c) x[c] = y[k][c] * math::silu(z[k][c]) * r * weight[c];  // both forms are this product
    out.store(start + j, end, x);
  }
}

template <class T>
struct Backward {
  Operands<T> in;
  Elements<T> dout, dy, dz;
  bool add_y, add_z;
  float* partial;  // [blocks / groups, group, channel], or null
  int64_t rows, rows_per_block;
};

// One channel: v and d, the gradient of v r weight.
struct Channel {
  float v, d;
};
__device__ Channel channel(bool norm_first, float y, float dout, float gate) {
  return norm_first ? Channel{y, dout * gate} : Channel{y * gate, dout};
}

template <class T, int held>
__global__ void __launch_bounds__(held == 2 ? 384 : most_threads, held == 2 ? 2 : 1) backward(Backward<T> p) {
  constexpr int n = per_piece<T>;
  const Operands<T>& in = p.in;
  const int64_t group = blockIdx.x % in.groups, column = group * in.channels;
  const int64_t first = blockIdx.x / in.groups * p.rows_per_block, last = min(p.rows, first + p.rows_per_block);
  float dweight[held][n] = {};
  for (int64_t row = first; row < last; ++row) {
    const int64_t start = (row * in.groups + group) * in.channels, end = start + in.channels;
    Lanes<T> y[held], z[held], dout[held];
    float sums[2] = {0, 0};  // v², d weight v
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int64_t i = start + piece_start<T>(k);
      y[k] = i < end ? in.y.load(i, end) : Lanes<T>{};
      z[k] = i < end ? in.z.load(i, end) : Lanes<T>{};
      dout[k] = i < end ? p.dout.load(i, end) : Lanes<T>{};
    }
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int64_t j = piece_start<T>(k);
      if (j >= in.channels) break;
      float weight[n];
      in.weight.load(column + j, column + in.channels, weight);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        const Channel at = channel(in.norm_first, y[k][c], dout[k][c], math::silu(z[k][c]));
        sums[0] += at.v * at.v;
        sums[1] += at.d * weight[c] * at.v;
      }
    }
    block_sum(sums);
    const float r = in.inverse_rms(sums[0]), mean = sums[1] / static_cast<float>(in.channels) * r * r;
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int64_t j = piece_start<T>(k);
      if (j >= in.channels) break;
      float weight[n], dy[n], dz[n];
      in.weight.load(column + j, column + in.channels, weight);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        const math::Gate gate = math::open_gate(z[k][c]);
        const Channel at = channel(in.norm_first, y[k][c], dout[k][c], gate.value);
        const float normed = at.v * r, dv = r * (at.d * weight[c] - at.v * mean);
        dweight[k][c] += at.d * normed;
        dy[c] = in.norm_first ? dv : dv * gate.value;
        dz[c] = (in.norm_first ? dout[k][c] * (normed * weight[c]) : dv * y[k][c]) * gate.slope;
      }
      if (p.dy) p.dy.put(start + j, end, dy, p.add_y);
      if (p.dz) p.dz.put(start + j, end, dz, p.add_z);
    }
  }
  if (p.partial == nullptr) return;
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c)
      if (const int64_t j = piece_start<T>(k) + c; j < in.channels)
        p.partial[blockIdx.x * in.channels + j] = dweight[k][c];
}

template <class T>
Operands<T> operands(const GatedRmsNorm& op) {
  const int64_t n = op.y.size(-1) / op.groups;
  return {.y = Elements<T>(op.y, n), .z = Elements<T>(op.z, n),
          .weight = Elements<float, per_piece<T>>(op.weight, n), .groups = op.groups, .channels = n,
          .eps = static_cast<float>(op.eps), .norm_first = op.norm_before_gate};
}

// Calls f(pieces that a thread holds, threads).
template <class T, class F>
void with_held(int64_t channels, F&& f) {
  const auto threads = [&](int64_t held) {
    const int64_t warp = held * per_piece<T> * 32;
    return static_cast<int>((channels + warp - 1) / warp * 32);
  };
  if (threads(1) <= most_threads / 2) return f(std::integral_constant<int, 1>{}, threads(1));
  if (threads(2) <= 384) return f(std::integral_constant<int, 2>{}, threads(2));
  if (threads(4) <= most_threads) return f(std::integral_constant<int, 4>{}, threads(4));
  fail("GatedRmsNorm: a group of more than 16384 channels (8192 in f32) on the GPU");
}

}  // namespace

void gated_rms_norm_forward(Cuda on, const GatedRmsNorm& op, const Tensor& out) {
  const int64_t n = op.y.size(-1) / op.groups;
  with_gpu_float("GatedRmsNorm", out.dtype(), [&]<class T>(T) {
    with_held<T>(n, [&](auto held, int threads) {
      launch(forward<T, held()>, blocks(op.y.count() / n, 1), threads, 0, on, operands<T>(op), Elements<T>(out, n));
    });
  });
}

void gated_rms_norm_backward(Cuda on, const GatedRmsNorm& op, const Tensor& dout, const GatedRmsNormSlots& to) {
  const int64_t channels = op.y.size(-1), n = channels / op.groups, rows = op.y.count() / channels;
  with_gpu_float("GatedRmsNorm", dout.dtype(), [&]<class T>(T) {
    with_held<T>(n, [&](auto held, int threads) {
      // As many blocks as run at once on 132 processors: each leaves a row of partial sums.
      const int64_t most = std::max<int64_t>(1, 132 * std::clamp(768 / threads, 2, 16) / op.groups);
      const int64_t each = std::max<int64_t>(1, (rows + most - 1) / most), count = (rows + each - 1) / each;
      const Tensor partial = to.weight.tensor ? Tensor({count, channels}, DType::f32, Device::cuda) : Tensor();
      const Backward<T> p{.in = operands<T>(op), .dout = Elements<T>(dout, n), .dy = Elements<T>(to.y.tensor, n),
                          .dz = Elements<T>(to.z.tensor, n), .add_y = to.y.accumulate, .add_z = to.z.accumulate,
                          .partial = partial ? partial.data<float>() : nullptr, .rows = rows, .rows_per_block = each};
      launch(backward<T, held()>, blocks(count * op.groups, 1), threads, 0, on, p);
      if (partial) sum_rows(on, partial, to.weight.tensor, to.weight.accumulate);
    });
  });
}

}  // namespace adder
