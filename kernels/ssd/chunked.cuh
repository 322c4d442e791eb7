// What the kernels of the chunked form share.
#pragma once

#include "adder/core/launch.cuh"
#include "adder/kernels/mma.cuh"
#include "adder/kernels/ssd/chunked.h"
#include "adder/kernels/ssd/time_step.cuh"

#include <array>
#include <span>

namespace adder::ssd::chunked {

inline constexpr int Q = 64;      // tokens of a chunk
inline constexpr int P_tile = 64;  // channels of a head, with zeros behind them

/// Whether a = Δ A is cut, so that its gradient is 0; and a itself.
__device__ inline bool is_cut(float delta, float A) { return delta * A < least_a; }
__device__ inline float log_decay(float delta, float A) { return is_cut(delta, A) ? least_a : delta * A; }

/// A masked weight. Weights are exponentials times Δ, never negative because dt_min is not; a NaN is not masked. Only
/// with documents is any masked.
inline constexpr float masked = -1;
template <bool documents>
__device__ float times(float weight, float x) {
  return documents && weight < 0 ? 0.0f : weight * x;
}

__device__ inline float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// This lane's part of a left operand, its columns k weighted.
template <bool documents>
__device__ void weigh(mma::Left& a, const float* weight) {
  const int k = mma::lane() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = mma::unpack(a.r[i]);
    const float* at = weight + k + i / 2 * 8;
    a.r[i] = mma::pack(times<documents>(at[0], x.x), times<documents>(at[1], x.y));
  }
}

/// Δ, cs and documents of a whole problem.
struct Decays {
  Tensor delta;  // f32 [batch, chunk, head, Q]: Δ_t
  Tensor sum;    // as delta: cs_t log2(e) from the start of the chunk, this token included
  Tensor start;  // i32 [batch, time]: its document's first token, -1 in a row's first; undefined: no documents
  Decays(Cuda on, const Ssd& op);
};

/// Sizes, and Decays as kernels see them.
struct Problem {
  int64_t batch, time, heads, groups, chunks;
  int P, N;
  const float *delta, *sum;
  const int* start;

  Problem(const Ssd& op, const Decays& decays);
  __host__ __device__ int64_t heads_per_group() const { return heads / groups; }
  __device__ int tokens_of(int64_t chunk) const { return static_cast<int>(min(int64_t{Q}, time - chunk * Q)); }
  /// Where Δ and cs of a chunk and head begin.
  __device__ int64_t decays_at(int64_t b, int64_t chunk, int64_t head) const {
    return ((b * chunks + chunk) * heads + head) * Q;
  }
  /// The document of token i of a chunk; tokens behind the last one belong to its document.
  __device__ int document(int64_t b, int64_t chunk, int i) const {
    return start == nullptr ? -1 : start[b * time + min(chunk * Q + i, time - 1)];
  }
};

/// Tokens of a bf16 tensor [batch, time, item, n].
struct Tokens {
  const bf16* data;
  int64_t stride;  // elements from one token to the next
  int64_t n;
  explicit Tokens(const Tensor& t) : data(t.data<bf16>()), stride(t.stride(t.size(2) * t.size(3))), n(t.size(3)) {}
  __device__ const bf16* at(int64_t token, int64_t item) const { return data + token * stride + item * n; }
};

/// The values of an optional f32 tensor.
inline float* floats(const Tensor& t) { return t ? t.data<float>() : nullptr; }

/// The states of all chunks and heads: bf16 [batch, chunk, head, P_tile, N_tile], zeros behind P and N. On Hopper each
/// lies as it does in shared memory, in panels of 64 columns (wgmma.cuh).
Tensor state_tiles(const Problem& p);
inline int N_tile(const Problem& p) { return p.N <= 64 ? 64 : 128; }

/// S from chunk to chunk, forward in time, or its gradient, backward. Where `states` is defined, each chunk gets the
/// state that enters it (forward) or the gradient of the state that leaves it (backward).
///   forward:   S' = e^{cs_Q} S + Σ_j e^{cs_Q - cs_j} Δ_j x_j B_jᵀ
///   backward:  dS = e^{cs_Q} dS' + Σ_i e^{cs_i} dy_i C_iᵀ
struct Sweep {
  Tensor x, B;         // x and B; backward: dy and C
  Tensor begin = {};   // f32 [batch, head, P, N]: initial_state, or the gradient of the final one; undefined: zero
  Tensor states = {};  // state_tiles
  Tensor end = {};     // f32 as begin: the final state, or the gradient of the initial one; undefined: not wanted
  bool reverse = false;
};
void sweep(Cuda on, const Problem& p, const Sweep& first);
void sweep(Cuda on, const Problem& p, const Sweep& first, const Sweep& second);  // beside each other

/// Rows are cut in segments of time where rows and heads alone would leave processors without work. The number depends
/// on those of rows, heads and sweeps beside each other, so the same problem gives the same bits.
struct Segments {
  int count;
  int64_t chunks;  // of each; the last ones may have fewer, or none
  Segments(const Problem& p, size_t sweeps);
};
/// What enters each segment of one or two sweeps, f32 [batch * head, segment, P * N], from the states that segments
/// leave when they begin with zero; and `end`, where it is wanted. Writes no `states`.
std::array<Tensor, 2> enter_segments(Cuda on, const Problem& p, std::span<const Sweep> sweeps, const Segments& cut);

/// Blocks that share the heads of a group so that `wanted` blocks have work.
int64_t head_splits(const Problem& p, int64_t wanted);

/// Calls f with the width of the tiles of states, and whether there are documents, as constants.
template <class F>
void with_constants(const Problem& p, F&& f) {
  const auto with_tile = [&](auto documents) {
    if (p.N <= 64) f(std::integral_constant<int, 64>{}, documents);
    else f(std::integral_constant<int, 128>{}, documents);
  };
  if (p.start == nullptr) with_tile(std::false_type{});
  else with_tile(std::true_type{});
}

}  // namespace adder::ssd::chunked
