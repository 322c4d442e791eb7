// Tokens on their way to a block that walks through time: tile by tile they come to shared memory, and the next tile is
// being read while the block works on one.
#pragma once

#include "adder/kernels/ssd/recurrent.cuh"

namespace adder::ssd {

/// Q tokens in shared memory.
template <int K, int Q>
struct alignas(16) Tile {
  float BC[2][Q][Cut<K>::columns];
  float x[Q][Cut<K>::rows];
  float delta[Q], decay[Q];
};

/// The same, spread over the threads, on its way there. Beyond the tile's tokens, rows and columns: zero.
template <int K, int Q>
struct Fetched {
  static constexpr int count = 2 * Q * Cut<K>::columns / threads;
  float BC[count], x, step;

  template <class P>
  __device__ void fetch(const P& p, const Self<K>& self, int64_t t0, int64_t end) {
    const int tid = static_cast<int>(threadIdx.x), tokens = static_cast<int>(min(int64_t{Q}, end - t0));
    const int64_t first = self.b * p.n.time + t0;
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const int i = tid + j * threads, q = i / Cut<K>::columns % Q, column = i % Cut<K>::columns;
      const bool inside = q < tokens && column < p.n.state;
      const auto& from = i < Q * Cut<K>::columns ? p.B : p.C;
      BC[j] = inside ? value(*from.at(first + q, self.group * p.n.state + column)) : 0.0f;
    }
    x = of_row(p.x, p.n, self, tid, first, tokens);
    const int64_t at = (self.b * p.n.heads + self.h) * p.n.time + t0;
    step = 0;
    if (tid < 2 * Q && tid % Q < tokens) step = (tid < Q ? p.delta : p.decay)[at + tid % Q];
  }

  /// Number `i` of [Q, rows], zero outside.
  template <class T>
  static __device__ float of_row(const Tokens<T>& from, const Extent& n, const Self<K>& self, int i, int64_t first,
                                 int tokens) {
    static_assert(Q * Cut<K>::rows <= threads);
    const int q = i / Cut<K>::rows;
    const int64_t row = self.block_row + i % Cut<K>::rows;
    return q < tokens && row < n.width ? value(*from.at(first + q, self.h * n.width + row)) : 0.0f;
  }

  __device__ void put(Tile<K, Q>& tile) const {
    const int tid = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int j = 0; j < count; ++j) (&tile.BC[0][0][0])[tid + j * threads] = BC[j];
    if (tid < Q * Cut<K>::rows) (&tile.x[0][0])[tid] = x;
    if (tid < Q) tile.delta[tid] = step;
    else if (tid < 2 * Q) tile.decay[tid - Q] = step;
  }
};

}  // namespace adder::ssd
