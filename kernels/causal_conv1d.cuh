// How the CUDA kernels of the causal convolution see its operands.
//
// Two kinds: walkers, for widths 2 to 4 and aligned rows, in which a thread takes 4 channels of a tile of tokens and
// walks along time with its last inputs in registers; and plain kernels, a thread for one channel of one token, for all
// else. Both add taps in the same order, the newest first, so that their results are the same bits.
#pragma once

#include "adder/core/elements.cuh"
#include "adder/kernels/causal_conv1d.h"

#include <algorithm>
#include <type_traits>

namespace adder::conv {

constexpr int n = 4;             // channels of a walker
constexpr int tile = 64;         // tokens that it walks
constexpr int lanes = 8;         // tiles in a block, one a warp
constexpr int columns = 32 * n;  // channels of a block
template <class T>
constexpr int ahead = 8 / static_cast<int>(sizeof(T));  // tokens that a walker reads before it looks at the first

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
  /// Whether walkers can read and write it.
  bool whole() const {
    return reinterpret_cast<uintptr_t>(data) % alignof(Lanes<T, n>) == 0 && stride % n == 0;
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
  bool can_walk() const { return width >= 2 && width <= 4 && channels % n == 0 && x.whole() && state.whole(); }

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
    for (int64_t k = 0, taken = taps(b, t); k < taken; ++k)
      s = fmaf(*weight(c, width - 1 - k), value(*input(b, t - k, c)), s);
    return s;
  }
};

/// What a walker keeps of the weights.
template <int width>
struct Taps {
  float weight[width][n], bias[n];  // the newest first

  template <class T>
  __device__ Taps(const Operands<T>& p, int64_t channel) {
#pragma unroll
    for (int c = 0; c < n; ++c) {
      bias[c] = p.bias ? p.bias[channel + c] : 0.0f;
#pragma unroll
      for (int k = 0; k < width; ++k) weight[k][c] = *p.weight(channel + c, width - 1 - k);
    }
  }
};

template <class T>
__device__ Lanes<T, n> read(const T* from) {
  return *reinterpret_cast<const Lanes<T, n>*>(from);
}

template <class T>
__device__ void write(T* to, const float (&x)[n]) {
  Lanes<T, n> p{};
#pragma unroll
  for (int c = 0; c < n; ++c) p.set(c, element<T>(x[c]));
  *reinterpret_cast<Lanes<T, n>*>(to) = p;
}

/// A walker: its sequence, channels and tokens, and what it knows of the tokens behind it.
template <class T, int width>
struct Walker {
  int64_t b, c, begin;       // the first channel and the first token
  int count;                 // tokens
  bool inside;               // false: a thread without work
  float past[width - 1][n];  // the inputs t - 1, t - 2, ...
  int taps = 0;              // of the last output
  int32_t document = 0;      // of the last token

  __device__ explicit Walker(const Operands<T>& p, int64_t tiles) {
    const int64_t across = (p.channels + columns - 1) / columns, i = blockIdx.x / across * lanes + threadIdx.y;
    b = i / tiles;
    begin = i % tiles * tile;
    count = static_cast<int>(min(p.time - begin, int64_t{tile}));
    c = blockIdx.x % across * columns + threadIdx.x * n;
    inside = b < p.batch && c < p.channels;
    if (!inside) return;
    taps = static_cast<int>(p.taps(b, begin - 1));
    if (p.document && begin < p.time) document = *p.document(b, max(int64_t{0}, begin - 1));
#pragma unroll
    for (int k = 1; k < width; ++k) {
      const bool exists = begin - k >= p.oldest();
      const Lanes<T, n> x = exists ? read(p.input(b, begin - k, c)) : Lanes<T, n>{};
#pragma unroll
      for (int j = 0; j < n; ++j) past[k - 1][j] = x[j];
    }
  }

  /// Enters the document of the next token.
  __device__ void enter(int32_t next) {
    taps = next == document ? min(width, taps + 1) : 1;
    document = next;
  }
  /// What SiLU is applied to, at a token entered, with input x.
  __device__ void sum(const Taps<width>& w, const float (&x)[n], float (&s)[n]) const {
#pragma unroll
    for (int j = 0; j < n; ++j) s[j] = fmaf(w.weight[0][j], x[j], w.bias[j]);
#pragma unroll
    for (int k = 1; k < width; ++k)
      if (k < taps)
#pragma unroll
        for (int j = 0; j < n; ++j) s[j] = fmaf(w.weight[k][j], past[k - 1][j], s[j]);
  }
  /// x becomes the newest input.
  __device__ void pass(const float (&x)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
#pragma unroll
      for (int k = width - 2; k > 0; --k) past[k][j] = past[k - 1][j];
      past[0][j] = x[j];
    }
  }
};

/// Calls f with the width as a constant.
template <class F>
void with_width(int64_t width, F&& f) {
  if (width == 2) f(std::integral_constant<int, 2>{});
  else if (width == 3) f(std::integral_constant<int, 3>{});
  else f(std::integral_constant<int, 4>{});
}

}  // namespace adder::conv
