// A block of a few warps takes a group of a row at a time and holds it in registers, 24 channels a thread in bf16, so
// that memory is touched once, the sums over the row pass few barriers, and rows of other blocks are on their way
// meanwhile: at 1536 channels two warps a row, eight rows a processor. A block takes many rows, so that the weight and
// the sums of dweight stay in registers too.
// Floor at memory speed, N = rows x channels, bf16: forward 6 N bytes (y, z in; out), backward 10 N (y, z, dout in; dy,
// dz out). Instructions come second: some 40 a channel backward, half of what the memory's time allows; so the gate is
// opened once, its sigmoid is kept and takes two of the special function unit.
// dweight: sum_rows sums what the blocks leave.
#include "adder/kernels/gated_rms_norm.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/math.cuh"
#include "adder/kernels/matmul.h"
#include "adder/kernels/warp.cuh"

#include <algorithm>

namespace adder {
namespace {

constexpr int most_threads = 512;  // and so at most 128 registers a thread

// Channels of a group, in pieces, that a thread holds.
template <class T>
constexpr int most_held = sizeof(T) == 2 ? 3 : 4;

// What forward and backward read. Block b has group b % groups.
template <class T>
struct Operands {
  Elements<T> y, z;
  Elements<float, per_piece<T>> weight;
  int64_t rows, groups;
  int channels;  // of a group
  float eps;

  __device__ float inverse_rms(float squares) const { return rsqrtf(squares / static_cast<float>(channels) + eps); }
};

// The piece k of the group that this thread holds: where it starts in the group.
template <class T>
__device__ int piece_start(int k) {
  return (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * per_piece<T>;
}

// max(z, -128): beyond it silu(z) is -0, and at -infinity z sigmoid(z) would be NaN. NaN stays NaN.
__device__ void bound(Lanes<float>& z) {
#pragma unroll
  for (unsigned& word : z.word) asm("max.NaN.f32 %0, %0, %1;" : "+r"(word) : "r"(0xc3000000u));
}
__device__ void bound(Lanes<bf16>& z) {
#pragma unroll
  for (unsigned& word : z.word) asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(word) : "r"(0xc300c300u));
}

// 1 / (1 + 2^(-z log2 e)). Rounding the exponent costs |z| 2^-24, relative: nothing beside bf16, and little in f32.
__device__ float sigmoid(float z) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(z * -1.44269504f));
  return math::reciprocal(1.0f + power);
}

template <class T, int held, bool norm_first>
__global__ void __launch_bounds__(most_threads) forward(Operands<T> p, Elements<T> out) {
  constexpr int n = per_piece<T>;
  const int64_t group = blockIdx.x % p.groups, step = gridDim.x / p.groups;
  float weight[held][n];
#pragma unroll
  for (int k = 0; k < held; ++k) p.weight.line(group * p.channels).load(piece_start<T>(k), p.channels, weight[k]);
  for (int64_t row = blockIdx.x / p.groups; row < p.rows; row += step) {
    const int64_t start = (row * p.groups + group) * p.channels;
    const Line<T, n> line_y = p.y.line(start), line_z = p.z.line(start), to = out.line(start);
    Lanes<T> y[held], z[held];
    float x[held][n], squares[1] = {0};  // y silu(z), which is a factor of both forms
#pragma unroll
    for (int k = 0; k < held; ++k) {
      y[k] = line_y.load(piece_start<T>(k), p.channels);
      z[k] = line_z.load(piece_start<T>(k), p.channels);
    }
#pragma unroll
    for (int k = 0; k < held; ++k) {
      bound(z[k]);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        x[k][c] = y[k][c] * (z[k][c] * sigmoid(z[k][c]));
        const float v = norm_first ? y[k][c] : x[k][c];
        squares[0] += v * v;
      }
    }
    block_sum(squares);
    const float r = p.inverse_rms(squares[0]);
#pragma unroll
    for (int k = 0; k < held; ++k) {
#pragma unroll
      for (int c = 0; c < n; ++c) x[k][c] *= r * weight[k][c];
      to.put(piece_start<T>(k), p.channels, x[k]);
    }
  }
}

template <class T>
struct Backward {
  Operands<T> in;
  Elements<T> dout, dy, dz;
  bool add_y, add_z;
  float* partial;  // [blocks / groups, group, channel], or null
  int64_t rows_per_block;
};

// One channel: v and d, the gradient of v r weight.
struct Channel {
  float v, d;
};
template <bool norm_first>
__device__ Channel channel(float y, float dout, float gate) {
  return norm_first ? Channel{y, dout * gate} : Channel{y * gate, dout};
}

// The compiler shall unpack these again: the floats would not fit in the registers.
template <class T, int held>
__device__ void forget(Lanes<T> (&x)[held]) {
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (unsigned& word : x[k].word) asm volatile("" : "+r"(word));
}

template <class T, int held, bool norm_first>
__global__ void __launch_bounds__(most_threads) backward(Backward<T> p) {
  constexpr int n = per_piece<T>;
  const Operands<T>& in = p.in;
  const int64_t group = blockIdx.x % in.groups;
  const int64_t first = blockIdx.x / in.groups * p.rows_per_block, last = min(in.rows, first + p.rows_per_block);
  float weight[held][n], dweight[held][n] = {};
#pragma unroll
  for (int k = 0; k < held; ++k) in.weight.line(group * in.channels).load(piece_start<T>(k), in.channels, weight[k]);
  for (int64_t row = first; row < last; ++row) {
    const int64_t start = (row * in.groups + group) * in.channels;
    const Line<T, n> line_y = in.y.line(start), line_z = in.z.line(start), line_d = p.dout.line(start);
    Lanes<T> y[held], z[held], dout[held];
    float open[held][n], sums[2] = {0, 0};  // sigmoid(z); v², d weight v
#pragma unroll
    for (int k = 0; k < held; ++k) {
      z[k] = line_z.load(piece_start<T>(k), in.channels);
      y[k] = line_y.load(piece_start<T>(k), in.channels);
      dout[k] = line_d.load(piece_start<T>(k), in.channels);
    }
#pragma unroll
    for (int k = 0; k < held; ++k) {
      bound(z[k]);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        open[k][c] = sigmoid(z[k][c]);
        const Channel at = channel<norm_first>(y[k][c], dout[k][c], z[k][c] * open[k][c]);
        sums[0] += at.v * at.v;
        sums[1] += at.d * weight[k][c] * at.v;
      }
    }
    block_sum(sums);
    forget(y);
    forget(z);
    forget(dout);
    const float r = in.inverse_rms(sums[0]), mean = sums[1] / static_cast<float>(in.channels) * r * r;
#pragma unroll
    for (int k = 0; k < held; ++k) {
      float dy[n], dz[n];
#pragma unroll
      for (int c = 0; c < n; ++c) {
        const float gate = z[k][c] * open[k][c], slope = open[k][c] + gate * (1.0f - open[k][c]);
        const Channel at = channel<norm_first>(y[k][c], dout[k][c], gate);
        const float normed = at.v * r, dv = r * (at.d * weight[k][c] - at.v * mean);
        dweight[k][c] += at.d * normed;
        dy[c] = norm_first ? dv : dv * gate;
        dz[c] = (norm_first ? dout[k][c] * (normed * weight[k][c]) : dv * y[k][c]) * slope;
      }
      if (p.dy) p.dy.line(start).put(piece_start<T>(k), in.channels, dy, p.add_y);
      if (p.dz) p.dz.line(start).put(piece_start<T>(k), in.channels, dz, p.add_z);
    }
  }
  if (p.partial == nullptr) return;
#pragma unroll
  for (int k = 0; k < held; ++k)
#pragma unroll
    for (int c = 0; c < n; ++c)
      if (const int j = piece_start<T>(k) + c; j < in.channels)
        p.partial[int64_t{blockIdx.x} * in.channels + j] = dweight[k][c];
}

template <class T>
Operands<T> operands(const GatedRmsNorm& op) {
  const int64_t channels = op.y.size(-1), n = channels / op.groups;
  return {.y = Elements<T>(op.y, n), .z = Elements<T>(op.z, n),
          .weight = Elements<float, per_piece<T>>(op.weight, n), .rows = op.y.count() / channels, .groups = op.groups,
          .channels = static_cast<int>(n), .eps = static_cast<float>(op.eps)};
}

// Calls f(pieces that a thread holds, norm_first, threads).
template <class T, class F>
void with_shape(const GatedRmsNorm& op, F&& f) {
  const int64_t channels = op.y.size(-1) / op.groups;
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  const int64_t lanes = parts(channels, per_piece<T>), warps = parts(lanes, 32 * most_held<T>);
  if (warps * 32 > most_threads) fail("GatedRmsNorm: a group of more than 12288 channels (8192 in f32) on the GPU");
  const int64_t held = parts(lanes, 32 * warps);
  const int threads = static_cast<int>(32 * warps);
  const auto with = [&](auto pieces) {
    if (op.norm_before_gate) f(pieces, std::true_type{}, threads);
    else f(pieces, std::false_type{}, threads);
  };
  if (held == 1) return with(std::integral_constant<int, 1>{});
  if (held == 2) return with(std::integral_constant<int, 2>{});
  if (held == 3) return with(std::integral_constant<int, 3>{});
  if constexpr (most_held<T> == 4) with(std::integral_constant<int, 4>{});
}

// Rows of blocks: as many as run at once on 132 processors, each of which has registers for `resident` threads.
int64_t most_at_once(int resident, int threads, int64_t groups) {
  return std::max<int64_t>(1, 132 * std::clamp(resident / threads, 1, 32) / groups);
}

}  // namespace

void gated_rms_norm_forward(Cuda on, const GatedRmsNorm& op, const Tensor& out) {
  const int64_t n = op.y.size(-1) / op.groups;
  with_gpu_float("GatedRmsNorm", out.dtype(), [&]<class T>(T) {
    with_shape<T>(op, [&](auto held, auto norm_first, int threads) {
      const Operands<T> p = operands<T>(op);
      const int64_t count = std::min(p.rows, most_at_once(held() < 4 ? 896 : 512, threads, op.groups));
      launch(forward<T, held(), norm_first()>, blocks(count * op.groups, 1), threads, 0, on, p, Elements<T>(out, n));
    });
  });
}

void gated_rms_norm_backward(Cuda on, const GatedRmsNorm& op, const Tensor& dout, const GatedRmsNormSlots& to) {
  const int64_t channels = op.y.size(-1), n = channels / op.groups, rows = op.y.count() / channels;
  with_gpu_float("GatedRmsNorm", dout.dtype(), [&]<class T>(T) {
    with_shape<T>(op, [&](auto held, auto norm_first, int threads) {
      const int64_t most = most_at_once(held() == 1 ? 1024 : 512, threads, op.groups);
      const int64_t each = std::max<int64_t>(1, (rows + most - 1) / most), count = (rows + each - 1) / each;
      const Tensor partial = to.weight.tensor ? Tensor({count, channels}, DType::f32, Device::cuda) : Tensor();
      const Backward<T> p{.in = operands<T>(op), .dout = Elements<T>(dout, n), .dy = Elements<T>(to.y.tensor, n),
                          .dz = Elements<T>(to.z.tensor, n), .add_y = to.y.accumulate, .add_z = to.z.accumulate,
                          .partial = partial ? partial.data<float>() : nullptr, .rows_per_block = each};
      launch(backward<T, held(), norm_first()>, blocks(count * op.groups, 1), threads, 0, on, p);
      if (partial) sum_rows(on, partial, to.weight.tensor, to.weight.accumulate);
    });
  });
}

}  // namespace adder
