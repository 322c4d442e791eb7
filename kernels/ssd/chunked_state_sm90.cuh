// A state on the chip, from chunk to chunk: what Hopper's forward and sweep share. One warpgroup holds it.
#pragma once

#include "adder/kernels/ssd/chunked.cuh"
#include "adder/kernels/wgmma_products.cuh"

namespace adder::ssd::chunked::hopper {

using namespace mma;
using wgmma::panel, wgmma::panel_size;

inline constexpr int state_threads = 128;

/// Numbers of a chunk's tokens, for one head.
struct Stage {
  float delta[Q], sum[Q];
  int document[Q];
};

/// Starts copying x (or dy) of a chunk and head, and the numbers of its tokens.
template <bool documents>
__device__ void load_tokens(const Problem& p, const Tokens& x, int b, int h, int chunk, bf16* tile, Stage& to) {
  copy_tile_async<state_threads>(Tile<P_tile>{tile}, x.at(b * p.time + int64_t{chunk} * Q, h), x.stride,
                                 p.tokens_of(chunk), p.P);
  const int thread = static_cast<int>(threadIdx.x), i = thread * 4;
  const int64_t at = p.decays_at(b, chunk, h);
  if (i < Q) copy_async(to.delta + i, p.delta + at + i, true);
  else if (i < 2 * Q) copy_async(to.sum + i - Q, p.sum + at + i - Q, true);
  else if (documents && thread >= Q)  // as Problem::document
    copy_async<4>(to.document + thread - Q, p.start + b * p.time + min(int64_t{chunk} * Q + thread - Q, p.time - 1),
                  true);
}

/// e^{cs_i}: what is left at token i of the state that enters, or masked where i's document is another.
template <bool documents>
__device__ float from_start(const Stage& s, int chunk, int i) {
  return !documents || s.document[i] < chunk * Q ? power_of_2(s.sum[i]) : masked;
}
/// w_j = e^{cs_Q - cs_j} Δ_j, masked where j's document ends before the chunk does.
template <bool documents>
__device__ float to_end(const Stage& s, int j) {
  const bool leaves = !documents || s.document[j] == s.document[Q - 1];
  return leaves ? power_of_2(s.sum[Q - 1] - s.sum[j]) * s.delta[j] : masked;
}

/// A warp's 16 rows of S [p, n], as sums.
template <int N_tile>
struct State {
  float s[N_tile / 8][4];
  int p0 = static_cast<int>(threadIdx.x / 32) * 16;

  /// f(two neighbours of a row, p, n)
  template <class F>
  __device__ void each_pair(F&& f) {
    const int l = lane_again();
#pragma unroll
    for (int t = 0; t < N_tile / 8; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        f(*reinterpret_cast<float2*>(s[t] + 2 * half), p0 + half * 8 + l / 4, t * 8 | l % 4 * 2);
  }
  /// From f32 [P, N], or zero if that is null.
  __device__ void read(const Problem& problem, const float* from) {
    each_pair([&](float2& pair, int p, int n) {
      pair = {0, 0};
      if (from != nullptr && p < problem.P && n < problem.N)
        pair = *reinterpret_cast<const float2*>(from + p * problem.N + n);
    });
  }
  __device__ void write(const Problem& problem, float* to) {
    each_pair([&](const float2& pair, int p, int n) {
      if (p < problem.P && n < problem.N) *reinterpret_cast<float2*>(to + p * problem.N + n) = pair;
    });
  }

  /// Rounded, into panels [p, n] that begin `apart` elements from each other. Pieces are found by exclusive or.
  __device__ void round_into(bf16* panels, int apart) const {
    const int l = lane_again(), own = (p0 + l / 4) * panel | (l / 4 * 8 + l % 4 * 2);
#pragma unroll
    for (int t = 0; t < N_tile / 8; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        store_pair(panels + t / 8 * apart + (own ^ t % 8 * 8) + half * 8 * panel, s[t][2 * half], s[t][2 * half + 1]);
  }

  template <bool documents>
  __device__ void scale(float decay) {
    const bool ends = documents && decay < 0;  // masked
#pragma unroll
    for (int t = 0; t < N_tile / 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (ends) s[t][i] = 0;
        else s[t][i] *= decay;
      }
  }

  /// Issues S += (w x)ᵀ B.   (w x)ᵀ [p, j]: x [j, p] transposed by ldmatrix; a keeps it until the products are done.
  ///                         B [j, n]: k = j runs across its rows, n along panels.
  template <bool documents>
  __device__ void update(Tile<P_tile> x, const float* weight, const bf16* B, uint32_t panel_bytes, Left (&a)[Q / 16]) {
#pragma unroll
    for (int k = 0; k < Q / 16; ++k) {
      a[k] = left_transposed(x, p0, k * 16);
      weigh<documents>(a[k], weight + k * 16);
    }
    wgmma::hold(s);
    wgmma::hold(a);
    wgmma::begin();
    const auto right = wgmma::across_k(B, 0, panel_bytes);
#pragma unroll
    for (int k = 0; k < Q / 16; ++k) wgmma::multiply_add<true>(s, a[k], right + k * 16 * panel * sizeof(bf16));
    wgmma::commit();
  }
};

}  // namespace adder::ssd::chunked::hopper
