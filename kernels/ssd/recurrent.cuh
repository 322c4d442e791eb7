// What the walks through time share. A block of 8 warps walks one (batch row, head) and some rows of its states: each
// warp has up to four rows, lanes lie across the columns with K of them each, so that
//
//   S_t = e^{a_t} S_{t-1} + Δ_t x_t B_tᵀ
//
// happens in registers, a sum over rows is a thread's own and one over columns the warp's.
#pragma once

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/ssd/ssd.h"
#include "adder/kernels/warp.cuh"

#include <type_traits>

namespace adder::ssd {

inline constexpr int warps = 8, threads = 32 * warps;

template <int K>
struct Cut {
  static constexpr int warp_rows = K <= 4 ? 4 : 16 / K, rows = warps * warp_rows;  // of a warp, of a block
  static constexpr int columns = 32 * K, piece = K < 4 ? K : 4;                    // of which a lane reads at once
};

/// Calls f with the number of columns a lane has.
template <class F>
void with_columns(int64_t state, F&& f) {
  if (state <= 64) return f(std::integral_constant<int, 2>{});
  if (state <= 128) return f(std::integral_constant<int, 4>{});
  if (state <= 256) return f(std::integral_constant<int, 8>{});
  if (state <= 512) return f(std::integral_constant<int, 16>{});
  fail("Ssd: more than 512 states on the GPU");
}

/// Sizes, and how many blocks share the rows of a head.
struct Extent {
  int64_t batch, time, heads, width, groups, state, blocks;
  Extent(const Ssd& op, int rows)
      : batch(op.x.size(0)), time(op.x.size(1)), heads(op.x.size(2)), width(op.x.size(3)), groups(op.B.size(2)),
        state(op.B.size(3)), blocks((width + rows - 1) / rows) {}
  __host__ __device__ int64_t all_blocks() const { return batch * heads * blocks; }
};

/// A tensor [batch, time, item, n], its tokens `stride` apart.
template <class T>
struct Tokens {
  T* data = nullptr;
  int64_t stride = 0;
  explicit Tokens(const Tensor& t) {
    if (!t) return;
    data = t.data<T>();
    stride = t.stride(t.size(2) * t.size(3));
  }
  __device__ T* at(int64_t token, int64_t i) const { return data + token * stride + i; }
};

/// Δ and e^{a}, [batch, head, time]. The decay of a token that starts a document is 0, and no other is.
struct TimeSteps {
  Tensor delta, decay;
};
TimeSteps time_steps(Cuda on, const Ssd& op);

/// Walks forward from `start` (see Walk) and keeps the state before token begin, begin + every, ...
struct Keep {
  int64_t begin, end, every;
  const float* start;
  float* states;  // [kept, block, row, column]
};
/// Floats of the states of all (batch row, head) as Keep has them.
int64_t kept_size(const Ssd& op);
void keep_states(Cuda on, const Ssd& op, const TimeSteps& steps, const Keep& keep);

/// What this thread has of the world.
template <int K>
struct Self {
  int64_t b, h, group, block_row;  // block_row: the first row of the block in its head
  int warp, lane, row;             // row: the first of the warp in the block

  __device__ explicit Self(const Extent& n)
      : warp(static_cast<int>(threadIdx.x / 32)), lane(static_cast<int>(threadIdx.x % 32)),
        row(warp * Cut<K>::warp_rows) {
    const int64_t item = blockIdx.x / n.blocks;
    b = item / n.heads;
    h = item % n.heads;
    group = h / (n.heads / n.groups);
    block_row = (blockIdx.x - item * n.blocks) * Cut<K>::rows;
  }
  __device__ int column(int k) const {
    constexpr int n = Cut<K>::piece;
    return (k / n * 32 + lane) * n + k % n;
  }
};

template <int n>
struct alignas(4 * n) Floats {
  float v[n];
};

/// A lane's columns of one row of Cut::columns floats.
template <int K>
__device__ void load_columns(const float* row, const Self<K>& self, float (&x)[K]) {
  constexpr int n = Cut<K>::piece;
#pragma unroll
  for (int k = 0; k < K; k += n) {
    const auto piece = *reinterpret_cast<const Floats<n>*>(row + self.column(k));
#pragma unroll
    for (int j = 0; j < n; ++j) x[k + j] = piece.v[j];
  }
}
template <int K>
__device__ void store_columns(float* row, const Self<K>& self, const float (&x)[K]) {
  constexpr int n = Cut<K>::piece;
#pragma unroll
  for (int k = 0; k < K; k += n) {
    Floats<n> piece;
#pragma unroll
    for (int j = 0; j < n; ++j) piece.v[j] = x[k + j];
    *reinterpret_cast<Floats<n>*>(row + self.column(k)) = piece;
  }
}

/// The warp's rows of the states.
template <int K>
using State = float[Cut<K>::warp_rows][K];

/// From and to a tensor [batch, head, width, state]; zero beyond its edges.
template <int K>
__device__ void load_state(const float* from, const Extent& n, const Self<K>& self, State<K>& S) {
#pragma unroll
  for (int r = 0; r < Cut<K>::warp_rows; ++r)
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t row = self.block_row + self.row + r, column = self.column(k);
      const bool inside = from != nullptr && row < n.width && column < n.state;
      S[r][k] = inside ? from[((self.b * n.heads + self.h) * n.width + row) * n.state + column] : 0.0f;
    }
}
template <int K>
__device__ void store_state(float* to, const Extent& n, const Self<K>& self, const State<K>& S) {
#pragma unroll
  for (int r = 0; r < Cut<K>::warp_rows; ++r)
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t row = self.block_row + self.row + r, column = self.column(k);
      if (row < n.width && column < n.state)
        to[((self.b * n.heads + self.h) * n.width + row) * n.state + column] = S[r][k];
    }
}

/// From and to number `i` of [kept, block, row, column].
template <int K>
__device__ int64_t kept_at(int64_t i, const Self<K>& self) {
  return ((i * gridDim.x + blockIdx.x) * Cut<K>::rows + self.row) * Cut<K>::columns;
}
template <int K>
__device__ void load_kept(const float* from, int64_t i, const Self<K>& self, State<K>& S) {
#pragma unroll
  for (int r = 0; r < Cut<K>::warp_rows; ++r) load_columns(from + kept_at(i, self) + r * Cut<K>::columns, self, S[r]);
}
template <int K>
__device__ void store_kept(float* to, int64_t i, const Self<K>& self, const State<K>& S) {
#pragma unroll
  for (int r = 0; r < Cut<K>::warp_rows; ++r) store_columns(to + kept_at(i, self) + r * Cut<K>::columns, self, S[r]);
}

/// S = decay S + input Bᵀ; a decay of 0 forgets S, NaN included.
template <int K>
__device__ void advance(State<K>& S, float decay, const float (&input)[Cut<K>::warp_rows], const float (&B)[K]) {
  const bool start = decay == 0;
#pragma unroll
  for (int r = 0; r < Cut<K>::warp_rows; ++r)
#pragma unroll
    for (int k = 0; k < K; ++k) S[r][k] = fmaf(input[r], B[k], start ? 0.0f : decay * S[r][k]);
}

/// m sums over the warp, m a power of two: lane l gets that of v[l % m].
template <int m>
__device__ float scattered_sum(float (&v)[m]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = m / 2; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(all_lanes, give, half);
    }
  }
#pragma unroll
  for (int step = m; step < 32; step *= 2) v[0] += __shfl_xor_sync(all_lanes, v[0], step);
  return v[0];
}

/// What a head's skip multiplies a row with; 0 without one.
__device__ inline float skip_of(const float* D, bool per_channel, const Extent& n, int64_t h, int64_t row) {
  if (D == nullptr || row >= n.width) return 0;
  return D[per_channel ? h * n.width + row : h];
}

}  // namespace adder::ssd
