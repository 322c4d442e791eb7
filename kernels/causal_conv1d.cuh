// How the CUDA kernels of the causal convolution see its operands.
//
// Two kinds: walkers, for widths 2 to 4 and rows of whole pieces of 16 bytes (causal_conv1d_walker.cuh), and plain
// kernels, a thread for one channel of one token, for all else. Both add taps in the same order, the newest first, and
// zero for a tap that does not count, and open SiLU in the same way, so that their y is the same bits.
#pragma once

#include "adder/core/elements.cuh"
#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/math.cuh"

#include <algorithm>
#include <type_traits>

namespace adder::conv {

constexpr int tile = 64;  // tokens that a walker walks
constexpr int warps = 4;  // of a block of walkers, which take tiles in order

/// Rows along the last axis.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  Rows() = default;
  explicit Rows(const Tensor& t) {
    if (t) *this = Rows(t.data<std::remove_const_t<T>>(), t.stride(t.size(-1)));
  }
  Rows(T* data_, int64_t stride_) : data(data_), stride(stride_) {}
  __host__ __device__ explicit operator bool() const { return data != nullptr; }
  __device__ T* operator()(int64_t row, int64_t column) const { return data + row * stride + column; }
  /// Whether walkers can read and write it: in whole pieces, and with 32-bit offsets inside a tile.
  __host__ __device__ bool whole() const {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % per_piece<T> == 0 && stride <= 1 << 24;
  }
};

/// The operands. Token t < 0 is a row of the initial state.
template <class T>
struct Operands {
  Rows<const T> x, state;
  Rows<const float> weight;
  const float* bias;
  Rows<const int32_t> document;
  int64_t batch, time, channels, width;
  bool silu;

  explicit Operands(const CausalConv1d& conv)
      : x(conv.x), state(conv.initial_state), weight(conv.weight), bias(conv.bias ? conv.bias.data<float>() : nullptr),
        document(conv.document), batch(conv.x.size(0)), time(conv.x.size(1)), channels(conv.x.size(2)),
        width(conv.weight.size(1)), silu(conv.silu) {}

  int64_t tiles() const { return std::max<int64_t>(1, (time + tile - 1) / tile); }  // of one sequence
  bool can_walk() const {
    return width >= 2 && width <= 4 && channels % per_piece<T> == 0 && x.whole() && state.whole();
  }

  __device__ const T* input(int64_t b, int64_t t, int64_t c) const {
    return t >= 0 ? x(b * time + t, c) : state(b * (width - 1) + width - 1 + t, c);
  }
  /// Whether t belongs to the document of t - 1.
  __device__ bool continues(int64_t b, int64_t t) const {
    return t <= 0 || !document || *document(b, t) == *document(b, t - 1);
  }
  __device__ int64_t oldest() const { return state ? 1 - width : 0; }
  /// Output t reads the inputs (t - taps, t]; also for t = -1, as if it were an output.
  __device__ int64_t taps(int64_t b, int64_t t) const {
    if (t < 0) return -oldest();
    int64_t k = 1;
    while (k < width && t - k >= oldest() && continues(b, t - k + 1)) ++k;
    return k;
  }
  /// The first input of the final state; the rows before it are zero.
  __device__ int64_t final_begin(int64_t b) const {
    int64_t t = time;
    while (t > time - (width - 1) && t > oldest() && (t == time || continues(b, t))) --t;
    return t;
  }
  /// What SiLU is applied to.
  __device__ float sum(int64_t b, int64_t t, int64_t c) const {
    float s = bias ? bias[c] : 0.0f;
    for (int64_t k = 0, taken = taps(b, t); k < width; ++k)
      s = fmaf(*weight(c, width - 1 - k), k < taken ? value(*input(b, t - k, c)) : 0.0f, s);
    return s;
  }
};

/// 1 / (1 + 2^(-x log2 e)). Rounding the exponent costs |x| 2^-24, relative: nothing beside bf16.
__device__ inline float sigmoid(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
  return math::reciprocal(1.0f + power);
}
/// max(x, -128): beyond it SiLU is 0, and at -infinity it would be NaN. NaN stays NaN.
__device__ inline float bounded_below(float x) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(-128.0f));
  return x;
}
template <class T>
__device__ float silu(float x) {
  if constexpr (sizeof(T) == 4) return math::silu(x);
  x = bounded_below(x);
  return x * sigmoid(x);
}

}  // namespace adder::conv
