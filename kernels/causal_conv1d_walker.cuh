// Walkers: a thread takes n of a tile's channels, which lie in one piece of 16 bytes or of 8, and walks along time with
// its last inputs in registers.
//
// What it is to read waits in shared memory, put there by copies that it starts groups of tokens ahead. A processor's
// part of an H200's copy bandwidth is some 20 KB read in the microsecond that memory may take to answer; its 16 warps
// have 8 to 12 tokens on their way, of 512 bytes of x forward, of 256 of x and of dy backward, for which the registers
// beside weights and sums would not do. Nobody but the thread that started a copy looks at it, so there is no barrier.
//
// A group of tokens in which no document begins and no tile ends is straight code; others go token by token.
#pragma once

#include "adder/kernels/causal_conv1d.cuh"
#include "adder/kernels/mma.cuh"
#include "adder/kernels/warp.cuh"

namespace adder::conv {

constexpr int group = 4;            // tokens whose copies start together
constexpr int groups = 3;           // that a walker has room for: one that it looks at, the others on their way

template <int n>
constexpr int columns = 32 * n;  // channels of a block
constexpr int depth = groups * group, ahead = depth - group;

template <int n, class T>
__device__ Lanes<T, n> read(const T* from) {
  return *reinterpret_cast<const Lanes<T, n>*>(from);
}
/// Writes x, rounded, if `really`: without a branch, which would keep the compiler from mixing one token with the next.
template <class T, int n>
__device__ void write(T* to, const float (&x)[n], bool really) {
  const Lanes<T, n> p = Lanes<T, n>::of(x);
  const auto yes = static_cast<unsigned>(really);
  if constexpr (sizeof(p) == 16)
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.b32 [%0], {%1, %2, %3, %4};}" ::"l"(to),
                 "r"(p.word[0]), "r"(p.word[1]), "r"(p.word[2]), "r"(p.word[3]), "r"(yes)
                 : "memory");
  else
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p st.global.v2.b32 [%0], {%1, %2};}" ::"l"(to),
                 "r"(p.word[0]), "r"(p.word[1]), "r"(yes)
                 : "memory");
}

/// What a walker keeps of the weights, times `scale`.
template <int n, int width>
struct Taps {
  float weight[width][n], bias[n];  // the newest first

  template <class T>
  __device__ Taps(const Operands<T>& p, int64_t channel, float scale = 1) {
    const bool whole = width == 4 && p.weight.whole();
#pragma unroll
    for (int c = 0; c < n; ++c) {
      const float* const row = p.weight(channel + c, 0);
      const Lanes<float> all = whole ? read<4>(row) : Lanes<float>{};
#pragma unroll
      for (int k = 0; k < width; ++k) weight[k][c] = scale * (whole ? all[width - 1 - k] : row[width - 1 - k]);
      bias[c] = p.bias ? scale * p.bias[channel + c] : 0.0f;
    }
  }
};

/// The pieces of an operand that a walker reads, on their way through shared memory.
template <class T, int n>
struct Stream {
  Lanes<T, n>* pieces;  // of this lane: those of a warp's token lie side by side
  const T* from;     // the tile's first token
  int stride, end;   // tokens from `end` on are not read

  /// Starts copying the group at token t.
  __device__ void ask(int t) const {
    Lanes<T, n>* const to = pieces + t % depth * 32;
    const int last = max(end - 1, 0);
#pragma unroll
    for (int i = 0; i < group; ++i)
      mma::copy_async<sizeof(*to)>(to + i * 32, from + min(t + i, last) * stride, t + i < end);
  }
  /// The group at token t: 32 pieces from one token to the next.
  __device__ const Lanes<T, n>* operator()(int t) const { return pieces + t % depth * 32; }
};

/// Waits for the copies of the group that is looked at next: `groups - 1` were committed after it.
__device__ inline void wait_for_group() { asm volatile("cp.async.wait_group %0;" ::"n"(groups - 1) : "memory"); }

/// A walker: its sequence, channels and tokens, and what it knows of the tokens behind it. All lanes of a warp walk;
/// those past the last channel walk along the last ones and write nothing.
template <class T, int n, int width>
struct Walker {
  int64_t b, c, begin;          // the first channel and the first token
  int count;                    // tokens, 0 in a warp without a tile
  bool inside;                  // whether this lane writes
  float past[width - 1][n];  // the inputs t - 1, t - 2, ..., or zero

  __device__ explicit Walker(const Operands<T>& p, int64_t tiles) {
    const int64_t across = (p.channels + columns<n> - 1) / columns<n>;
    const int64_t i = blockIdx.x / across * warps + threadIdx.y;
    b = i / tiles;
    begin = i % tiles * tile;
    count = b < p.batch ? static_cast<int>(min(p.time - begin, int64_t{tile})) : 0;
    c = blockIdx.x % across * columns<n> + threadIdx.x * n;
    inside = c < p.channels;
    c = min(c, p.channels - n);
  }
  __device__ void look_back(const Operands<T>& p) {
    const int64_t taps = p.taps(b, begin - 1);
#pragma unroll
    for (int k = 1; k < width; ++k) {
      const Lanes<T, n> x = k <= taps ? read<n>(p.input(b, begin - k, c)) : Lanes<T, n>{};
#pragma unroll
      for (int j = 0; j < n; ++j) past[k - 1][j] = x[j];
    }
  }
  /// The document of token t + lane of the tile and that of the token before; read well before they are looked at.
  struct Pair {
    int32_t own = 0, before = 0;
  };
  __device__ Pair documents(const Operands<T>& p, int t) const {
    const int64_t token = begin + t + static_cast<int>(threadIdx.x);
    if (!p.document || token <= 0 || token >= p.time) return {};
    return {*p.document(b, token), *p.document(b, token - 1)};
  }
  /// Bit i: whether a document begins with token t + i.
  __device__ static unsigned begins(const Pair& of) { return __ballot_sync(all_lanes, of.own != of.before); }
  /// A document begins.
  __device__ void forget() {
#pragma unroll
    for (int k = 0; k < width - 1; ++k)
#pragma unroll
      for (int j = 0; j < n; ++j) past[k][j] = 0.0f;
  }
  /// What SiLU is applied to, with input x.
  __device__ void sum(const Taps<n, width>& w, const float (&x)[n], float (&s)[n]) const {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      s[j] = fmaf(w.weight[0][j], x[j], w.bias[j]);
#pragma unroll
      for (int k = 1; k < width; ++k) s[j] = fmaf(w.weight[k][j], past[k - 1][j], s[j]);
    }
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
