// Floor: the weights, at memory speed. Every block scales the rows again, out of the L2 cache, while the first of its
// weight is on its way. What a block will read of the weights comes into that cache while the kernel ahead still runs.
#include "adder/kernels/mamba2_step.h"

#include "adder/core/launch.cuh"
#include "adder/kernels/causal_conv1d.cuh"
#include "adder/kernels/few_rows.cuh"
#include "adder/kernels/math.cuh"
#include "adder/kernels/warp.cuh"

namespace adder {
namespace {

constexpr int n = 4;          // channels that a thread scales at a time
constexpr int held = 1;       // times n of the first row, which it asks for before the weight
constexpr int most_taps = 4;  // of the convolution
constexpr int most_rows = 4;
constexpr int in_warps = 8, out_warps = 16;

template <class T>
__device__ Lanes<T, n> four(const T* from) {
  return *reinterpret_cast<const Lanes<T, n>*>(from);
}

// The rows times the weight of their norm, in shared memory: [row, channel]. The inverse root mean square is a factor
// of a whole row of the result: nothing waits for it until the product is there, and one barrier is enough.
template <class Source, int warps>
struct Scaled {
  Source from;
  const float* weight;
  bf16* x;
  float (*squares)[warps];  // [row]: sums of the warps
  int channels, rows;

  struct Piece {
    typename Source::Piece from;
    Lanes<float, n> weight;
  };
  __device__ int channel(int k) const { return (k * 32 * warps + static_cast<int>(threadIdx.x)) * n; }
  __device__ Piece ask(int i, int c) const {
    if (c >= channels) return {};
    return {from.ask(i, c), four(weight + c)};
  }
  // Adds to `sum`.
  __device__ void put(int i, int c, const Piece& piece, float& sum) const {
    if (c >= channels) return;
    float v[n], normed[n];  // whose squares count; what is normed
    from.give(i, c, piece.from, v, normed);
#pragma unroll
    for (int j = 0; j < n; ++j) sum += v[j] * v[j], normed[j] *= piece.weight[j];
    *reinterpret_cast<Lanes<bf16, n>*>(x + i * channels + c) = Lanes<bf16, n>::of(normed);
  }
  // By all threads, before a barrier; `first`: pieces of row 0.
  __device__ void operator()(const Piece (&first)[held]) const {
    for (int i = 0; i < rows; ++i) {
      float sum = 0;
#pragma unroll
      for (int k = 0; k < held; ++k) put(i, channel(k), i == 0 ? first[k] : ask(i, channel(k)), sum);
      for (int k = held; k * 32 * warps * n < channels; ++k) put(i, channel(k), ask(i, channel(k)), sum);
      sum = warp_sum(sum);
      if (threadIdx.x % 32 == 0) squares[i][threadIdx.x / 32] = sum;
    }
  }
  __device__ uint4 operator()(int i, int k) const {
    return i < rows && k < channels ? *reinterpret_cast<const uint4*>(x + i * channels + k) : uint4{};
  }
  __device__ float inverse_rms(int i, float eps) const {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < warps; ++k) sum += squares[i][k];
    return rsqrtf(sum / static_cast<float>(channels) + eps);
  }
};

// Once the kernel ahead is done: W times the rows, a number of this thread's Place. It calls also() on the way, where
// what that reads is waited for least.
template <int tiles, class Source, int warps, class Also>
__device__ float product(const few_rows::Weight& w, const Scaled<Source, warps>& x, const few_rows::Place<tiles>& at,
                         float eps, Also&& also) {
  typename Scaled<Source, warps>::Piece first[held];
#pragma unroll
  for (int k = 0; k < held; ++k) first[k] = x.ask(0, x.channel(k));
  const auto prepare = [&] {
    x(first);
    also();
    __syncthreads();
  };
  __shared__ few_rows::Parts<warps, tiles, 1> parts;
  few_rows::multiply(parts, w, prepare, x);
  if (!at.inside) return 0;
  return parts.sum(at.row, static_cast<int>(threadIdx.x) % (8 * tiles)) * x.inverse_rms(at.row, eps);
}

struct In {
  few_rows::Weight w;
  const bf16* x;
  const float *residual, *norm;  // residual may be null
  float* sum;
  bf16* p;
  bf16* state;  // [row, taps - 1, channel]
  const float *taps, *bias;  // [channel, taps]; bias may be null
  int64_t first, channels;
  int rows, width;
  float eps;
  bool silu;
};

// s = x + residual, which block 0 writes.
struct Sum {
  const bf16* x;
  const float* residual;
  float* sum;
  int channels;

  struct Piece {
    Lanes<bf16, n> x;
    Lanes<float, n> residual;
  };
  __device__ Piece ask(int i, int c) const {
    const int at = i * channels + c;
    return {four(x + at), residual == nullptr ? Lanes<float, n>{} : four(residual + at)};
  }
  __device__ void give(int i, int c, const Piece& piece, float (&s)[n], float (&normed)[n]) const {
#pragma unroll
    for (int j = 0; j < n; ++j) normed[j] = s[j] = residual == nullptr ? piece.x[j] : piece.residual[j] + piece.x[j];
    if (blockIdx.x == 0) *reinterpret_cast<float4*>(sum + i * channels + c) = {s[0], s[1], s[2], s[3]};
  }
};

// What a thread needs of the convolution for one channel of one row; read before the product is there.
struct Convolution {
  float taps[most_taps], bias = 0;  // the newest first
  bf16 past[most_taps - 1];         // the newest first
  bool concerned;
  int channel;

  __device__ Convolution(const In& p, bool inside, int64_t column)
      : concerned(inside && column >= p.first && column < p.first + p.channels),
        channel(static_cast<int>(column - p.first)) {}
  __device__ void fetch(const In& p, int row) const {
    if (!concerned) return;
    if (p.bias != nullptr) prefetch(p.bias + channel);
    prefetch(p.taps + int64_t{channel} * p.width);
    for (int k = 1; k < p.width; ++k) prefetch(state(p, row, k));
  }
  __device__ void read(const In& p, int row) {
    if (!concerned) return;
    if (p.bias != nullptr) bias = p.bias[channel];
#pragma unroll
    for (int k = 0; k < most_taps; ++k) {
      if (k >= p.width) break;
      taps[k] = p.taps[int64_t{channel} * p.width + p.width - 1 - k];
      if (k > 0) past[k - 1] = *state(p, row, k);
    }
  }
  // The input k tokens ago.
  __device__ bf16* state(const In& p, int row, int k) const {
    return p.state + (int64_t{row} * (p.width - 1) + p.width - 1 - k) * p.channels + channel;
  }
  __device__ bf16 step(const In& p, int row, bf16 x) const {
    float s = fmaf(taps[0], value(x), bias);
#pragma unroll
    for (int k = 1; k < most_taps; ++k) {
      if (k >= p.width) break;
      s = fmaf(taps[k], value(past[k - 1]), s);
      *state(p, row, k) = k == 1 ? x : past[k - 2];
    }
    return element<bf16>(p.silu ? conv::silu<bf16>(s) : s);
  }
};

template <int tiles>
__global__ void __launch_bounds__(32 * in_warps, 3) step_in(In p) {
  extern __shared__ __align__(16) bf16 shared[];
  __shared__ float squares[most_rows][in_warps];
  let_next_start();
  few_rows::fetch<tiles>(p.w);
  if (blockIdx.x == 0 && threadIdx.x == 0) prefetch(p.norm, 4 * static_cast<unsigned>(p.w.k));
  const few_rows::Place<tiles> at(p.w.n, p.rows);
  Convolution conv(p, at.inside, at.column);
  conv.fetch(p, at.row);
  const Scaled<Sum, in_warps> x{.from = {p.x, p.residual, p.sum, p.w.k}, .weight = p.norm, .x = shared,
                                .squares = squares, .channels = p.w.k, .rows = p.rows};
  wait_for_previous();
  const bf16 y = element<bf16>(product(p.w, x, at, p.eps, [&] { conv.read(p, at.row); }));
  if (at.inside) p.p[at.row * p.w.n + at.column] = conv.concerned ? conv.step(p, at.row, y) : y;
}

struct Out {
  few_rows::Weight w;
  const bf16 *y, *z;
  int64_t stride_y, stride_z;
  const float* norm;
  bf16* out;
  int rows;
  float eps;
  bool norm_first;
};

// y silu(z), or y whose factor is silu(z) norm: the squares are then those of y alone.
struct Gated {
  const bf16 *y, *z;
  int64_t stride_y, stride_z;
  bool norm_first;

  struct Piece {
    Lanes<bf16, n> y, z;
  };
  __device__ Piece ask(int i, int c) const { return {four(y + i * stride_y + c), four(z + i * stride_z + c)}; }
  __device__ void give(int, int, const Piece& piece, float (&v)[n], float (&normed)[n]) const {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      normed[j] = piece.y[j] * math::silu(piece.z[j]);
      v[j] = norm_first ? piece.y[j] : normed[j];
    }
  }
};

template <int tiles>
__global__ void __launch_bounds__(32 * out_warps, tiles == 1 ? 2 : 1) step_out(Out p) {
  extern __shared__ __align__(16) bf16 shared[];
  __shared__ float squares[most_rows][out_warps];
  let_next_start();
  few_rows::fetch<tiles>(p.w);
  if (blockIdx.x == 0 && threadIdx.x == 0) prefetch(p.norm, 4 * static_cast<unsigned>(p.w.k));
  const few_rows::Place<tiles> at(p.w.n, p.rows);
  const Scaled<Gated, out_warps> x{.from = {p.y, p.z, p.stride_y, p.stride_z, p.norm_first}, .weight = p.norm,
                                   .x = shared, .squares = squares, .channels = p.w.k, .rows = p.rows};
  wait_for_previous();
  const float y = product(p.w, x, at, p.eps, [] {});
  if (at.inside) p.out[at.row * p.w.n + at.column] = element<bf16>(y);
}

bool is(const Tensor& t, DType type, uintptr_t bytes) {
  return t.dtype() == type && reinterpret_cast<uintptr_t>(t.address()) % bytes == 0;
}
int64_t shared_bytes(int64_t rows, int64_t channels) { return 2 * rows * channels; }

// A weight [parts, channels] in pieces, and few rows.
bool fits(const Tensor& weight, int64_t rows) {
  const int64_t channels = weight.size(1);
  return is(weight, DType::bf16, 16) && weight.stride(channels) % few_rows::piece == 0 &&
         channels % few_rows::piece == 0 && rows >= 1 && rows <= most_rows && shared_bytes(rows, channels) <= 40 << 10;
}

few_rows::Weight weight_of(const Tensor& t) {
  return {t.data<bf16>(), t.stride(t.size(1)), t.size(0), static_cast<int>(t.size(1))};
}

}  // namespace

bool fits(const Mamba2StepIn& in) {
  const CausalConv1dStep& c = in.conv;
  const int64_t batch = in.x.size(0), parts = in.weight.size(0), width = in.weight.size(1);
  const int64_t channels = c.weight.size(0), taps = c.weight.size(1);
  const Shape rows{batch, width};
  const bool residual = !in.residual || (in.residual.shape() == rows && in.residual.contiguous() &&
                                         is(in.residual, DType::f32, 16));
  const bool conv = taps <= most_taps && in.first >= 0 && in.first + channels <= parts && c.weight.contiguous() &&
                    (!c.bias || c.bias.shape() == Shape{channels}) && c.state.contiguous() &&
                    c.state.shape() == Shape{batch, taps - 1, channels} && is(c.state, DType::bf16, 2);
  return in.x.shape() == rows && in.x.contiguous() && is(in.x, DType::bf16, 8) && in.norm.shape() == Shape{width} &&
         is(in.norm, DType::f32, 16) && residual && conv && fits(in.weight, batch);
}

bool fits(const Mamba2StepOut& out) {
  const int64_t batch = out.y.size(0), channels = out.weight.size(1);
  const auto fours = [&](const Tensor& t) {
    return t.shape() == Shape{batch, channels} && is(t, DType::bf16, 8) && t.stride(channels) % n == 0;
  };
  return fours(out.y) && fours(out.z) && out.norm.shape() == Shape{channels} && is(out.norm, DType::f32, 16) &&
         fits(out.weight, batch);
}

std::array<Tensor, 2> mamba2_step_in(Cuda on, const Mamba2StepIn& in) {
  const int64_t rows = in.x.size(0), parts = in.weight.size(0), channels = in.weight.size(1);
  const Tensor p({rows, parts}, DType::bf16, Device::cuda), sum(in.x.shape(), DType::f32, Device::cuda);
  const In a{.w = weight_of(in.weight), .x = in.x.data<bf16>(),
             .residual = in.residual ? in.residual.data<float>() : nullptr, .norm = in.norm.data<float>(),
             .sum = sum.data<float>(), .p = p.data<bf16>(), .state = in.conv.state.data<bf16>(),
             .taps = in.conv.weight.data<float>(), .bias = in.conv.bias ? in.conv.bias.data<float>() : nullptr,
             .first = in.first, .channels = in.conv.weight.size(0), .rows = static_cast<int>(rows),
             .width = static_cast<int>(in.conv.weight.size(1)), .eps = static_cast<float>(in.eps),
             .silu = in.conv.silu};
  // Wide blocks norm less often; narrow ones are enough for all processors.
  const int64_t shared = shared_bytes(rows, channels);
  if (parts >= 8192) launch_early(step_in<3>, blocks(parts, 24), 32 * in_warps, shared, on, a);
  else if (parts >= 2048) launch_early(step_in<2>, blocks(parts, 16), 32 * in_warps, shared, on, a);
  else launch_early(step_in<1>, blocks(parts, 8), 32 * in_warps, shared, on, a);
  return {p, sum};
}

Tensor mamba2_step_out(Cuda on, const Mamba2StepOut& out) {
  const int64_t rows = out.y.size(0), width = out.weight.size(0), channels = out.weight.size(1);
  const Tensor result({rows, width}, DType::bf16, Device::cuda);
  const Out a{.w = weight_of(out.weight), .y = out.y.data<bf16>(), .z = out.z.data<bf16>(),
              .stride_y = out.y.stride(channels), .stride_z = out.z.stride(channels), .norm = out.norm.data<float>(),
              .out = result.data<bf16>(), .rows = static_cast<int>(rows), .eps = static_cast<float>(out.eps),
              .norm_first = out.norm_before_gate};
  const int64_t shared = shared_bytes(rows, channels);
  if (width >= 2048) launch_early(step_out<2>, blocks(width, 16), 32 * out_warps, shared, on, a);
  else launch_early(step_out<1>, blocks(width, 8), 32 * out_warps, shared, on, a);
  return result;
}

}  // namespace adder
