// How the CUDA kernels of the causal convolution see its operands.
//
// Two kinds: walkers, for widths 2 to 4 and rows of whole pieces of 16 bytes, in which a thread takes one piece of a
// tile's channels and walks along time with its last inputs in registers; and plain kernels, a thread for one channel of
// one token, for all else. Both add taps in the same order, the newest first, and zero for a tap that does not count, so
// that their y is the same bits.
//
// A walker's inputs wait in shared memory, put there by copies that it starts groups of tokens ahead: memory answers
// after a microsecond, in which a processor must have 20 KiB on their way to read at full speed, more than the registers
// beside weights and sums would hold. Nobody but the thread that started a copy looks at it, so no barrier is needed.
#pragma once

#include "adder/core/elements.cuh"
#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/math.cuh"
#include "adder/kernels/mma.cuh"
#include "adder/kernels/warp.cuh"

#include <algorithm>
#include <type_traits>

namespace adder::conv {

constexpr int tile = 64;            // tokens that a walker walks
constexpr int warps = 4;            // of a block of walkers: tiles in order, one a warp
constexpr int group = 4;            // tokens whose copies start together
constexpr int groups = 3;           // that a walker has room for: one that it looks at, the others on their way
constexpr int forward_blocks = 4;   // on a processor at once: what the registers allow
constexpr int backward_blocks = 3;

template <class T>
constexpr int n = per_piece<T>;  // channels of a walker
template <class T>
constexpr int columns = 32 * n<T>;  // of a block
constexpr int depth = groups * group, ahead = depth - group;

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
  bool can_walk() const { return width >= 2 && width <= 4 && channels % n<T> == 0 && x.whole() && state.whole(); }

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

/// x sigmoid(x), and its slope. Beside bf16 1 / (1 + 2^(-x log2 e)) is near enough: rounding the exponent costs
/// |x| 2^-24, relative.
__device__ inline float sigmoid(float x) {
  float power, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + power));
  return y;
}
/// In [-128, above]: beyond -128 SiLU and its slope are -0, beyond 128 the slope is 1. NaN stays NaN.
__device__ inline float bounded_below(float x) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(-128.0f));
  return x;
}
__device__ inline float bounded(float x) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(128.0f));
  return bounded_below(x);
}
template <class T>
__device__ float silu(float x) {
  if constexpr (sizeof(T) == 4) return math::silu(x);
  x = bounded_below(x);
  return x * sigmoid(x);
}
template <class T>
__device__ float silu_gradient(float x) {
  if constexpr (sizeof(T) == 4) return math::silu_gradient(x);
  x = bounded(x);
  const float s = sigmoid(x);
  return fmaf(s, fmaf(-s, x, x), s);
}

template <class T>
__device__ Lanes<T> read(const T* from) {
  return *reinterpret_cast<const Lanes<T>*>(from);
}
/// Writes x, rounded, if `really`: without a branch, which would keep the compiler from mixing one token with the next.
template <class T>
__device__ void write(T* to, const float (&x)[n<T>], bool really) {
  const Lanes<T> p = Lanes<T>::of(x);
  asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.b32 [%0], {%1, %2, %3, %4};}" ::"l"(to),
               "r"(p.word[0]), "r"(p.word[1]), "r"(p.word[2]), "r"(p.word[3]), "r"(static_cast<unsigned>(really))
               : "memory");
}

/// What a walker keeps of the weights.
template <class T, int width>
struct Taps {
  float weight[width][n<T>], bias[n<T>];  // the newest first

  __device__ Taps(const Operands<T>& p, int64_t channel) {
    const bool whole = width == 4 && p.weight.whole();
#pragma unroll
    for (int c = 0; c < n<T>; ++c) {
      const float* const row = p.weight(channel + c, 0);
      const Lanes<float> all = whole ? read(row) : Lanes<float>{};
#pragma unroll
      for (int k = 0; k < width; ++k) weight[k][c] = whole ? all[width - 1 - k] : row[width - 1 - k];
      bias[c] = p.bias ? p.bias[channel + c] : 0.0f;
    }
  }
};

/// The pieces of an operand that a walker reads, on their way through shared memory.
template <class T>
struct Stream {
  Lanes<T>* pieces;  // of this lane: those of a warp's token lie side by side
  const T* from;     // the tile's first token
  int stride, end;   // tokens from `end` on are not read

  /// Starts copying the group at token t.
  __device__ void ask(int t) const {
    Lanes<T>* const to = pieces + t % depth * 32;
#pragma unroll
    for (int i = 0; i < group; ++i)
      mma::copy_async(to + i * 32, from + (t + i) * stride, t + i < end);
  }
  /// The group at token t: 32 pieces from one token to the next.
  __device__ const Lanes<T>* operator()(int t) const { return pieces + t % depth * 32; }
};

/// Waits for the copies of the group that is looked at next: `groups - 1` were committed after it.
__device__ inline void wait_for_group() { asm volatile("cp.async.wait_group %0;" ::"n"(groups - 1) : "memory"); }

/// A walker: its sequence, channels and tokens, and what it knows of the tokens behind it. All lanes of a warp walk;
/// those past the last channel walk along the last ones and write nothing.
template <class T, int width>
struct Walker {
  int64_t b, c, begin;          // the first channel and the first token
  int count;                    // tokens, 0 in a warp without a tile
  bool inside;                  // whether this lane writes
  float past[width - 1][n<T>];  // the inputs t - 1, t - 2, ..., or zero

  __device__ explicit Walker(const Operands<T>& p, int64_t tiles) {
    const int64_t across = (p.channels + columns<T> - 1) / columns<T>;
    const int64_t i = blockIdx.x / across * warps + threadIdx.y;
    b = i / tiles;
    begin = i % tiles * tile;
    count = b < p.batch ? static_cast<int>(min(p.time - begin, int64_t{tile})) : 0;
    c = blockIdx.x % across * columns<T> + threadIdx.x * n<T>;
    inside = c < p.channels;
    c = min(c, p.channels - n<T>);
  }
  __device__ void look_back(const Operands<T>& p) {
    const int64_t taps = p.taps(b, begin - 1);
#pragma unroll
    for (int k = 1; k < width; ++k) {
      const Lanes<T> x = k <= taps ? read(p.input(b, begin - k, c)) : Lanes<T>{};
#pragma unroll
      for (int j = 0; j < n<T>; ++j) past[k - 1][j] = x[j];
    }
  }
  /// Bit i: whether a document begins with token t + i of the tile.
  __device__ unsigned documents(const Operands<T>& p, int t) const {
    if (!p.document) return 0;
    const int64_t token = begin + t + static_cast<int>(threadIdx.x);
    return __ballot_sync(all_lanes, token < p.time && !p.continues(b, token));
  }
  /// A document begins.
  __device__ void forget() {
#pragma unroll
    for (int k = 0; k < width - 1; ++k)
#pragma unroll
      for (int j = 0; j < n<T>; ++j) past[k][j] = 0.0f;
  }
  /// What SiLU is applied to, with input x.
  __device__ void sum(const Taps<T, width>& w, const float (&x)[n<T>], float (&s)[n<T>]) const {
#pragma unroll
    for (int j = 0; j < n<T>; ++j) {
      s[j] = fmaf(w.weight[0][j], x[j], w.bias[j]);
#pragma unroll
      for (int k = 1; k < width; ++k) s[j] = fmaf(w.weight[k][j], past[k - 1][j], s[j]);
    }
  }
  /// x becomes the newest input.
  __device__ void pass(const float (&x)[n<T>]) {
#pragma unroll
    for (int j = 0; j < n<T>; ++j) {
#pragma unroll
      for (int k = width - 2; k > 0; --k) past[k][j] = past[k - 1][j];
      past[0][j] = x[j];
    }
  }
};

/// Calls f with the width and with whether there is SiLU, as constants.
template <class F>
void with_shape(int64_t width, bool silu, F&& f) {
  const auto with = [&](auto taps) {
    if (silu) f(taps, std::true_type{});
    else f(taps, std::false_type{});
  };
  if (width == 2) with(std::integral_constant<int, 2>{});
  else if (width == 3) with(std::integral_constant<int, 3>{});
  else with(std::integral_constant<int, 4>{});
}

}  // namespace adder::conv
