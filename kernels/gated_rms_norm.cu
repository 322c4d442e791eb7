// A block of a few warps takes a group of a row at a time, so that memory is touched once, the sums over the row pass
// few barriers, and rows of other blocks are on their way meanwhile. It takes many rows, so that the weight and the
// sums of dweight stay in registers. Forward, a thread holds 24 channels of bf16 in registers too: at 1536 channels two
// warps a row, 14 rows a processor. Backward has more to do with a row: it copies the next one into shared memory
// meanwhile, so that at any time 72 KB are on their way to a processor: at 4096 channels three rows of eight warps, at
// 1536 eight rows of three.
// Floor at memory speed, N = rows x channels, bf16: forward 6 N bytes (y, z in; out), backward 10 N (y, z, dout in; dy,
// dz out). Instructions come second: backward 29 a channel and some 340 a row and warp, two thirds of what the memory's
// time allows; so the gate is opened once, its sigmoid is kept and takes two of the special function unit.
// dweight: sum_rows sums what the blocks leave.
#include "adder/kernels/gated_rms_norm.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/math.cuh"
#include "adder/kernels/matmul.h"
#include "adder/kernels/mma.cuh"
#include "adder/kernels/warp.cuh"

#include <algorithm>

namespace adder {
namespace {

constexpr int most_threads = 512, most_threads_backward = 768;  // and so at most 128 and 80 registers a thread

// Channels of a group, in pieces, that a thread holds.
template <class T>
constexpr int most_held = sizeof(T) == 2 ? 3 : 4;
template <class T>
constexpr int most_held_backward = sizeof(T) == 2 ? 2 : 3;

// What forward and backward read. Block b has group b % groups.
template <class T>
struct Operands {
  Elements<T> y, z;
  Elements<float, per_piece<T>> weight;
  int64_t rows, groups;
  int channels;  // of a group
  float share, eps;  // share: 1 / channels

  __device__ float inverse_rms(float squares) const { return rsqrtf(squares * share + eps); }
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
  let_next_start();
  wait_for_previous();
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

// What a thread has of a group in shared memory. Nobody else reads it, so that it needs no barrier.
template <class T, int held>
struct Staged {
  Lanes<T>* own;

  static constexpr int y = 0, z = 1, dout = 2, operands = 3;
  __device__ Lanes<T>& at(int operand, int k) const { return own[(operand * held + k) * static_cast<int>(blockDim.x)]; }
  __device__ void fetch(int operand, const Line<T, per_piece<T>>& from, int channels) const {
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int j = piece_start<T>(k);
      if (from.whole) mma::copy_async(&at(operand, k), from.p + (j < channels ? j : 0), j < channels);
      else at(operand, k) = from.load(j, channels);
    }
  }
  __device__ void fetch(const Backward<T>& p, int64_t start) const {
    fetch(z, p.in.z.line(start), p.in.channels);
    fetch(y, p.in.y.line(start), p.in.channels);
    fetch(dout, p.dout.line(start), p.in.channels);
    mma::commit_copies();
  }
};

template <class T, int held, bool norm_first>
__global__ void __launch_bounds__(most_threads_backward) backward(Backward<T> p) {
  constexpr int n = per_piece<T>;
  using Row = Staged<T, held>;
  extern __shared__ uint4 shared[];  // two rows
  const Operands<T>& in = p.in;
  const int64_t group = blockIdx.x % in.groups;
  const int64_t first = blockIdx.x / in.groups * p.rows_per_block, last = min(in.rows, first + p.rows_per_block);
  const auto start_of = [&](int64_t row) { return (row * in.groups + group) * in.channels; };
  const auto staged = [&](int64_t row) {
    return Row{reinterpret_cast<Lanes<T>*>(shared) + threadIdx.x + row % 2 * (Row::operands * held * blockDim.x)};
  };
  float weight[held][n], dweight[held][n] = {};
  staged(first).fetch(p, start_of(first));
#pragma unroll
  for (int k = 0; k < held; ++k) in.weight.line(group * in.channels).load(piece_start<T>(k), in.channels, weight[k]);
  for (int64_t row = first; row < last; ++row) {
    const Row here = staged(row);
    mma::wait_for_copies();
    if (row + 1 < last) staged(row + 1).fetch(p, start_of(row + 1));
    float open[held][n], sums[2] = {0, 0};  // sigmoid(z); v², d weight v
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const Lanes<T> y = here.at(Row::y, k), dout = here.at(Row::dout, k);
      Lanes<T> z = here.at(Row::z, k);
      bound(z);
#pragma unroll
      for (int c = 0; c < n; ++c) {
        open[k][c] = sigmoid(z[c]);
        const Channel at = channel<norm_first>(y[c], dout[c], z[c] * open[k][c]);
        sums[0] += at.v * at.v;
        sums[1] += at.d * weight[k][c] * at.v;
      }
    }
    block_sum(sums);
    const float r = in.inverse_rms(sums[0]), pull = sums[1] * in.share * r * r * r;
    const Line<T, n> to_y = p.dy.line(start_of(row)), to_z = p.dz.line(start_of(row));
#pragma unroll
    for (int k = 0; k < held; ++k) {  // reads the row again: registers for all of it would cost half of the threads
      const Lanes<T> y = here.at(Row::y, k), dout = here.at(Row::dout, k);
      Lanes<T> z = here.at(Row::z, k);
      bound(z);
      float dy[n], dz[n];
#pragma unroll
      for (int c = 0; c < n; ++c) {
        const float gate = z[c] * open[k][c], slope = open[k][c] + gate * (1.0f - open[k][c]);
        const Channel at = channel<norm_first>(y[c], dout[c], gate);
        const float d = at.d * r, dv = d * weight[k][c] - at.v * pull;
        dweight[k][c] += d * at.v;
        dy[c] = norm_first ? dv : dv * gate;
        dz[c] = (norm_first ? dout[c] * (at.v * r * weight[k][c]) : dv * y[c]) * slope;
      }
      if (p.dy) to_y.put(piece_start<T>(k), in.channels, dy, p.add_y);
      if (p.dz) to_z.put(piece_start<T>(k), in.channels, dz, p.add_z);
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
          .channels = static_cast<int>(n), .share = 1.0f / static_cast<float>(n),
          .eps = static_cast<float>(op.eps)};
}

// Calls f(pieces that a thread holds, of at most `most`, norm_first, threads).
template <class T, int most, class F>
void with_shape(const GatedRmsNorm& op, int limit, F&& f) {
  const int64_t channels = op.y.size(-1) / op.groups;
  const auto parts = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
  const int64_t lanes = parts(channels, per_piece<T>), warps = parts(lanes, 32 * most);
  if (warps * 32 > limit) fail("GatedRmsNorm: a group of more than 12288 channels (8192 in f32) on the GPU");
  const int64_t held = parts(lanes, 32 * warps);
  const int threads = static_cast<int>(32 * warps);
  const auto with = [&](auto pieces) {
    if (op.norm_before_gate) f(pieces, std::true_type{}, threads);
    else f(pieces, std::false_type{}, threads);
  };
  if (held == 1) return with(std::integral_constant<int, 1>{});
  if (held == 2) return with(std::integral_constant<int, 2>{});
  if constexpr (most >= 3)
    if (held == 3) return with(std::integral_constant<int, 3>{});
  if constexpr (most >= 4) with(std::integral_constant<int, 4>{});
}

// Rows of blocks: as many as run at once on 132 processors, each of which has registers for `resident` threads.
int64_t most_at_once(int resident, int threads, int64_t groups) {
  return std::max<int64_t>(1, 132 * std::clamp(resident / threads, 1, 32) / groups);
}

}  // namespace

void gated_rms_norm_forward(Cuda on, const GatedRmsNorm& op, const Tensor& out) {
  const int64_t n = op.y.size(-1) / op.groups;
  with_gpu_float("GatedRmsNorm", out.dtype(), [&]<class T>(T) {
    with_shape<T, most_held<T>>(op, most_threads, [&](auto held, auto norm_first, int threads) {
      const Operands<T> p = operands<T>(op);
      const int64_t count = std::min(p.rows, most_at_once(held() < 4 ? 896 : 512, threads, op.groups));
      const auto kernel = forward<T, held(), norm_first()>;
      const unsigned all = blocks(count * op.groups, 1);
      if (p.rows <= early_rows) launch_early(kernel, all, threads, 0, on, p, Elements<T>(out, n));
      else launch(kernel, all, threads, 0, on, p, Elements<T>(out, n));
    });
  });
}

void gated_rms_norm_backward(Cuda on, const GatedRmsNorm& op, const Tensor& dout, const GatedRmsNormSlots& to) {
  const int64_t channels = op.y.size(-1), n = channels / op.groups, rows = op.y.count() / channels;
  with_gpu_float("GatedRmsNorm", dout.dtype(), [&]<class T>(T) {
    with_shape<T, most_held_backward<T>>(op, most_threads_backward, [&](auto held, auto norm_first, int threads) {
      const int64_t most = most_at_once(most_threads_backward, threads, op.groups);
      const int64_t each = std::max<int64_t>(1, (rows + most - 1) / most), count = (rows + each - 1) / each;
      const Tensor partial = to.weight.tensor ? Tensor({count, channels}, DType::f32, Device::cuda) : Tensor();
      const Backward<T> p{.in = operands<T>(op), .dout = Elements<T>(dout, n), .dy = Elements<T>(to.y.tensor, n),
                          .dz = Elements<T>(to.z.tensor, n), .add_y = to.y.accumulate, .add_z = to.z.accumulate,
                          .partial = partial ? partial.data<float>() : nullptr, .rows_per_block = each};
      const int64_t shared = int64_t{2} * Staged<T, held()>::operands * held() * threads * 16;
      launch(backward<T, held(), norm_first()>, blocks(count * op.groups, 1), threads, shared, on, p);
      if (partial) sum_rows(on, partial, to.weight.tensor, to.weight.accumulate);
    });
  });
}

}  // namespace adder
