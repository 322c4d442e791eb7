// Floor: the weights, at memory speed. Every block norms the rows again, out of the L2 cache, while the first of its
// weight is on its way.
#include "adder/kernels/mamba2_step.h"

#include "adder/core/launch.cuh"
#include "adder/kernels/causal_conv1d.cuh"
#include "adder/kernels/few_rows.cuh"
#include "adder/kernels/math.cuh"
#include "adder/kernels/warp.cuh"

namespace adder {
namespace {

constexpr int n = 4;         // channels that a thread norms at a time
constexpr int most_taps = 4;  // of the convolution
constexpr int most_rows = 4;
constexpr int in_warps = 8, out_warps = 16;

struct Floats {
  float v[n];
};

template <class T>
__device__ Floats four(const T* from) {
  const auto lanes = *reinterpret_cast<const Lanes<T, n>*>(from);
  return {{lanes[0], lanes[1], lanes[2], lanes[3]}};
}

// What the rows become, in shared memory: room for one row in f32, then [row, channel] in bf16.
struct Normed {
  float* row;
  bf16* x;
  int channels, rows;

  __device__ uint4 operator()(int i, int k) const {
    return i < rows && k < channels ? *reinterpret_cast<const uint4*>(x + i * channels + k) : uint4{};
  }
};

// Row i of `to` = r weight v, with r the inverse root mean square of what read(c, v) gives for four channels, which
// also sets v. By all threads.
template <class Read>
__device__ void norm(const Normed& to, int i, const float* weight, float eps, Read&& read) {
  const int step = static_cast<int>(blockDim.x) * n, first = static_cast<int>(threadIdx.x) * n;
  float squares[1] = {0};
  for (int c = first; c < to.channels; c += step) {
    Floats v;
    const Floats u = read(c, v);
#pragma unroll
    for (int j = 0; j < n; ++j) squares[0] += u.v[j] * u.v[j];
    *reinterpret_cast<float4*>(to.row + c) = {v.v[0], v.v[1], v.v[2], v.v[3]};
  }
  block_sum(squares);
  const float r = rsqrtf(squares[0] / static_cast<float>(to.channels) + eps);
  for (int c = first; c < to.channels; c += step) {  // a thread reads what it wrote itself
    const Floats v = four(to.row + c), w = four(weight + c);
    const float y[n] = {v.v[0] * (r * w.v[0]), v.v[1] * (r * w.v[1]), v.v[2] * (r * w.v[2]), v.v[3] * (r * w.v[3])};
    *reinterpret_cast<Lanes<bf16, n>*>(to.x + i * to.channels + c) = Lanes<bf16, n>::of(y);
  }
}

__device__ Normed normed_at(float* shared, int channels, int rows) {
  return {shared, reinterpret_cast<bf16*>(shared + channels), channels, rows};
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

// What a thread needs of the convolution for one channel of one row; read before the product is there.
struct Convolution {
  float taps[most_taps], bias;   // the newest first
  bf16 past[most_taps - 1];      // the newest first
  bool concerned;
  int64_t channel;

  __device__ Convolution(const In& p, bool inside, int64_t column, int row)
      : bias(0), concerned(inside && column >= p.first && column < p.first + p.channels), channel(column - p.first) {
    if (!concerned) return;
    if (p.bias != nullptr) bias = p.bias[channel];
#pragma unroll
    for (int k = 0; k < most_taps; ++k) {
      if (k >= p.width) break;
      taps[k] = p.taps[channel * p.width + p.width - 1 - k];
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
  extern __shared__ __align__(16) float shared[];
  const few_rows::Place<tiles> at(p.w.n, p.rows);
  const Convolution conv(p, at.inside, at.column, at.row);
  const Normed x = normed_at(shared, p.w.k, p.rows);
  const auto prepare = [&] {
    for (int i = 0; i < p.rows; ++i) {
      const int64_t start = int64_t{i} * p.w.k;
      norm(x, i, p.norm, p.eps, [&](int c, Floats& s) {
        s = four(p.x + start + c);
        if (p.residual != nullptr) {
          const Floats before = four(p.residual + start + c);
#pragma unroll
          for (int j = 0; j < n; ++j) s.v[j] = before.v[j] + s.v[j];
        }
        if (blockIdx.x == 0) *reinterpret_cast<float4*>(p.sum + start + c) = {s.v[0], s.v[1], s.v[2], s.v[3]};
        return s;
      });
    }
    __syncthreads();
  };
  const bf16 y = element<bf16>(few_rows::product<in_warps, tiles, 1>(p.w, prepare, x));
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

template <int tiles>
__global__ void __launch_bounds__(32 * out_warps, tiles == 1 ? 2 : 1) step_out(Out p) {
  extern __shared__ __align__(16) float shared[];
  const few_rows::Place<tiles> at(p.w.n, p.rows);
  const Normed x = normed_at(shared, p.w.k, p.rows);
  const auto prepare = [&] {
    for (int i = 0; i < p.rows; ++i)
      norm(x, i, p.norm, p.eps, [&](int c, Floats& v) {
        const Floats y = four(p.y + i * p.stride_y + c), z = four(p.z + i * p.stride_z + c);
#pragma unroll
        for (int j = 0; j < n; ++j) v.v[j] = y.v[j] * math::silu(z.v[j]);
        return p.norm_first ? y : v;
      });
    __syncthreads();
  };
  const float sum = few_rows::product<out_warps, tiles, 1>(p.w, prepare, x);
  if (at.inside) p.out[at.row * p.w.n + at.column] = element<bf16>(sum);
}

bool is(const Tensor& t, DType type, uintptr_t bytes) {
  return t.dtype() == type && reinterpret_cast<uintptr_t>(t.address()) % bytes == 0;
}
int64_t shared_bytes(int64_t rows, int64_t channels) { return (4 + 2 * rows) * channels; }

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
  if (parts >= 8192) launch(step_in<4>, blocks(parts, 32), 32 * in_warps, shared, on, a);
  else if (parts >= 2048) launch(step_in<2>, blocks(parts, 16), 32 * in_warps, shared, on, a);
  else launch(step_in<1>, blocks(parts, 8), 32 * in_warps, shared, on, a);
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
  if (width >= 2048) launch(step_out<2>, blocks(width, 16), 32 * out_warps, shared, on, a);
  else launch(step_out<1>, blocks(width, 8), 32 * out_warps, shared, on, a);
  return result;
}

}  // namespace adder
