// All gradients of a chunk and group: one block, eight warps, four of 16 tokens times two halves of the columns.
//
// With S the state that enters and G the gradient of the state that leaves (formulas and letters of backward.cpp), for
// each head of the group:
//
//   1. dYX = dy xᵀ;  T = e^{cs_i - cs_j} Δ_j dYX, added to d(C Bᵀ);  rows and columns of W = T ⊙ C Bᵀ are summed
//   2. u = e^{cs_Q - cs_j} B Gᵀ + scoresᵀ dy;  dx = Δ u + D dy;  u·x;  dy·x
//   3. e^{cs_i} dy S, added to dC, and its product with C
//   4. Δ_j e^{cs_Q - cs_j} x G, added to dB, and its product with B: τ;  <G, S>
//   5. after eight heads, a warp each: dcs, its sums from behind, ddt
//
// and after the last head dC += d(C Bᵀ) B, dB += d(C Bᵀ)ᵀ C. Floor: x, dy, S, G read and dx written. On Hopper
// chunked_backward_sm90.cu does the same.
#include "adder/kernels/ssd/chunked_backward.cuh"
#include "adder/kernels/ssd/fragments.cuh"
#include "adder/kernels/wgmma.cuh"

namespace adder::ssd::chunked {
namespace {

using namespace mma;

template <int N_tile>
struct alignas(128) Shared {
  struct Stage {
    bf16 x[Q * P_tile], dy[Q * P_tile], S[P_tile * N_tile], G[P_tile * N_tile];
  };
  Stage stage[2];
  bf16 B[Q * N_tile], C[Q * N_tile];
  bf16 scores[Q * Q], dx[Q * P_tile];
  float delta[16][Q], sum[16][Q];  // of the last heads: step 5 reads those of eight, and others are on their way
  Parts<2> parts[9];               // of eight heads and the next one
  int document[Q];
};

template <int N_tile>
__device__ void load_head(const Gradients& a, int64_t b, int64_t chunk, int64_t h, int64_t k, Shared<N_tile>& shared) {
  const Problem& p = a.p;
  auto& to = shared.stage[k % 2];
  const int64_t token = b * p.time + chunk * Q, state = (b * p.chunks + chunk) * p.heads + h;
  copy_tile_async<gradient_threads>(Tile<P_tile>{to.x}, a.x.at(token, h), a.x.stride, p.tokens_of(chunk), p.P);
  copy_tile_async<gradient_threads>(Tile<P_tile>{to.dy}, a.dy.at(token, h), a.dy.stride, p.tokens_of(chunk), p.P);
  copy_tile_async<gradient_threads>(Tile<N_tile>{to.S}, a.S + state * (P_tile * N_tile), N_tile, P_tile, N_tile);
  copy_tile_async<gradient_threads>(Tile<N_tile>{to.G}, a.G + state * (P_tile * N_tile), N_tile, P_tile, N_tile);
  const int i = static_cast<int>(threadIdx.x) * 4;
  if (i < Q) copy_async(shared.delta[k % 16] + i, p.delta + state * Q + i, true);
  else if (i < 2 * Q) copy_async(shared.sum[k % 16] + i - Q, p.sum + state * Q + i - Q, true);
  commit_copies();
}

// What a warp holds over the heads, and what it knows of the head at hand.
template <int N_tile, bool documents>
struct Warp {
  static constexpr int tiles = N_tile / 16;  // of 8 columns in its half of N
  const Gradients& a;
  Shared<N_tile>& shared;
  int row, half;              // its first token; which half of the columns is its own
  float CB[4][4], dCB[4][4];  // tokens [row, row + 16) times [32 half, 32 half + 32)
  float dB[tiles][4], dC[tiles][4];
  int r[2], q;                // this lane's rows, and its first column in a tile
  int document[2];
  bool enters[2], leaves[2];

  __device__ Warp(const Gradients& a_, Shared<N_tile>& shared_, int64_t begin)
      : a(a_),
        shared(shared_),
        row(static_cast<int>(threadIdx.x / 64) * 16),
        half(static_cast<int>(threadIdx.x / 32 % 2)),
        CB{},
        dCB{},
        dB{},
        dC{},
        r{row + lane() / 4, row + lane() / 4 + 8},
        q(lane() % 4 * 2) {
    for (int i = 0; i < 2; ++i) {
      document[i] = shared.document[r[i]];
      enters[i] = document[i] < begin;
      leaves[i] = document[i] == shared.document[Q - 1];
    }
    const Tile<N_tile> B{shared.B}, C{shared.C};
#pragma unroll
    for (int k = 0; k < N_tile; k += 16) {
      const Left c = left(C, row, k);
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        const Right b = right(B, half * 32 | t * 8, k);
        multiply_add(CB[t], c, b, 0);
        multiply_add(CB[t + 1], c, b, 1);
      }
    }
  }

  // Step 1. A block of 16 x 16 above the diagonal is nothing.
  __device__ void scores(const Left (&dy)[4], typename Shared<N_tile>::Stage& s, const float* delta,
                         const float* sum, Parts<2>& parts) {
    const Tile<P_tile> x{s.x};
    const Tile<Q> to{shared.scores};
    const float cs[2] = {sum[r[0]], sum[r[1]]};
    float rows[2] = {0, 0}, columns[8] = {};
#pragma unroll
    for (int t = 0; t < 4; t += 2) {
      const int first = half * 32 | t * 8;
      if (first > row) continue;
      float product[2][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Right b = right(x, first, k * 16);
        multiply_add(product[0], dy[k], b, 0);
        multiply_add(product[1], dy[k], b, 1);
      }
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int j = first | u * 8 | q;
        const float2 d = *reinterpret_cast<const float2*>(delta + j), cs_j = *reinterpret_cast<const float2*>(sum + j);
        const int2 other = documents ? *reinterpret_cast<const int2*>(shared.document + j) : int2{};
        float score[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool odd = i % 2 == 1;
          const bool counts = j + i % 2 <= r[i / 2] && (!documents || (odd ? other.y : other.x) == document[i / 2]);
          const float e = power_of_2(cs[i / 2] - (odd ? cs_j.y : cs_j.x)), cb = CB[t + u][i];
          score[i] = counts ? e * cb : 0.0f;
          const float T = counts ? e * (odd ? d.y : d.x) * product[u][i] : 0.0f;
          const float W = counts && j + i % 2 < r[i / 2] ? T * cb : 0.0f;  // its diagonal would cancel
          dCB[t + u][i] += T;
          rows[i / 2] += W;
          columns[2 * (t + u) + i % 2] += W;
        }
        store_pair(to.at(r[0], j), score[0], score[1]);
        store_pair(to.at(r[1], j), score[2], score[3]);
      }
    }
    parts.column[row / 16][half * 32 + column_of_lane()] = column_sum(columns);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float all = row_sum(rows[i]);
      if (lane() % 4 == 0) parts.row[half][r[i]] = all;
    }
  }

  // Step 2, for tokens j of its rows and its half of P.
  __device__ void inputs(typename Shared<N_tile>::Stage& s, const float (&to_end)[2], const float (&delta)[2],
                         int64_t h, Parts<2>& parts) const {
    const Tile<P_tile> x{s.x}, dy{s.dy}, out{shared.dx};
    const Tile<N_tile> G{s.G}, B{shared.B};
    const Tile<Q> M{shared.scores};
    float u[4][4] = {};
#pragma unroll
    for (int k = 0; k < N_tile; k += 16) {
      const Left b = left(B, row, k);
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        const Right g = right(G, half * 32 | t * 8, k);
        multiply_add(u[t], b, g, 0);
        multiply_add(u[t + 1], b, g, 1);
      }
    }
#pragma unroll
    for (int t = 0; t < 4; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) u[t][i] = times<documents>(to_end[i / 2], u[t][i]);
#pragma unroll
    for (int k = 0; k < Q; k += 16) {
      if (k < row) continue;
      const Left m = left_transposed(M, row, k);
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        const Right d = right_transposed(dy, half * 32 | t * 8, k);
        multiply_add(u[t], m, d, 0);
        multiply_add(u[t + 1], m, d, 1);
      }
    }
    const int P = a.p.P;
    const float D_head = a.D == nullptr || a.D_per_channel ? 0.0f : a.D[h];
    float input[2] = {0, 0}, skip[2] = {0, 0}, channel[8] = {};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int column = half * 32 | t * 8 | q;
      float2 D = {D_head, D_head};
      if (a.D != nullptr && a.D_per_channel && column < P) D = *reinterpret_cast<const float2*>(a.D + h * P + column);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 x_i = load_pair(x.at(r[i], column)), dy_i = load_pair(dy.at(r[i], column));
        const float u0 = u[t][2 * i], u1 = u[t][2 * i + 1], d0 = dy_i.x * x_i.x, d1 = dy_i.y * x_i.y;
        input[i] += u0 * x_i.x + u1 * x_i.y;
        skip[i] += d0 + d1;
        channel[2 * t] += d0;
        channel[2 * t + 1] += d1;
        store_pair(out.at(r[i], column), delta[i] * u0 + D.x * dy_i.x, delta[i] * u1 + D.y * dy_i.y);
      }
    }
    if (a.D_per_channel) parts.channel[row / 16][half * 32 + column_of_lane()] = column_sum(channel);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float x_u = row_sum(input[i]), x_dy = row_sum(skip[i]);
      if (lane() % 4 != 0) continue;
      parts.input[half][r[i]] = x_u;
      parts.skip[half][r[i]] = x_dy;
    }
  }

  // dx of its rows and half, from the tile to memory by whole pieces.
  __device__ void store_dx(int64_t b, int64_t chunk, int64_t h) const {
    __syncwarp();
    const Tile<P_tile> tile{shared.dx};
    const int rows = a.p.tokens_of(chunk);
    const int64_t token = b * a.p.time + chunk * Q;
    for (int i = lane(); i < 16 * 4; i += 32) {
      const int t = row + i / 4, column = half * 32 + i % 4 * 8;
      if (t < rows && column < a.p.P)
        *reinterpret_cast<uint4*>(a.dx + (token + t) * a.stride_dx + h * a.p.P + column) =
            *reinterpret_cast<const uint4*>(tile.at(t, column));
    }
  }

  // Steps 3 and 4: gradient += factor ⊙ (rows state), and dots = the same times `with`, row by row.
  __device__ void through_state(const Left (&rows)[4], bf16* state, const float (&factor)[2], bf16* with,
                                float (&gradient)[tiles][4], float (&dots)[2][Q]) const {
    const Tile<N_tile> S{state}, other{with};
    float dot[2] = {0, 0};
#pragma unroll
    for (int t = 0; t < tiles; t += 2) {
      const int first = half * (N_tile / 2) | t * 8;
      float product[2][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Right b = right_transposed(S, first, k * 16);
        multiply_add(product[0], rows[k], b, 0);
        multiply_add(product[1], rows[k], b, 1);
      }
#pragma unroll
      for (int u = 0; u < 2; ++u)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 w = load_pair(other.at(r[i], first | u * 8 | q));
          const float y0 = times<documents>(factor[i], product[u][2 * i]),
                      y1 = times<documents>(factor[i], product[u][2 * i + 1]);
          gradient[t + u][2 * i] += y0;
          gradient[t + u][2 * i + 1] += y1;
          dot[i] += y0 * w.x + y1 * w.y;
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float all = row_sum(dot[i]);
      if (lane() % 4 == 0) dots[half][r[i]] = all;
    }
  }

  // <G, S>, this warp's part: the diagonal of products of 16 rows of S with the same rows of G.
  __device__ void states_dot(typename Shared<N_tile>::Stage& s, Parts<2>& parts) const {
    const Tile<N_tile> S{s.S}, G{s.G};
    float product[2][4] = {};
#pragma unroll
    for (int k = 0; k < N_tile / 2; k += 16) {
      const int n = half * (N_tile / 2) | k;
      const Left l = left(S, row, n);
      const Right g = right(G, row, n);
      multiply_add(product[0], l, g, 0);
      multiply_add(product[1], l, g, 1);
    }
    const int r = lane() / 4;
    const float sum = warp_sum(r == q       ? product[0][0] + product[1][2]
                               : r == q + 1 ? product[0][1] + product[1][3]
                                            : 0.0f);
    if (lane() == 0) parts.states[threadIdx.x / 32] = sum;
  }

  __device__ void head(int64_t b, int64_t chunk, int64_t h, int64_t k) {
    auto& s = shared.stage[k % 2];
    const float *delta = shared.delta[k % 16], *sum = shared.sum[k % 16];
    Parts<2>& parts = shared.parts[k % 9];
    Left rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = left(Tile<P_tile>{s.dy}, row, i * 16);
    scores(rows, s, delta, sum, parts);
    float from_start[2], to_end[2], leaving[2], step[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      step[i] = delta[r[i]];
      from_start[i] = enters[i] ? power_of_2(sum[r[i]]) : masked;
      to_end[i] = leaves[i] ? power_of_2(sum[Q - 1] - sum[r[i]]) : masked;
      leaving[i] = leaves[i] ? to_end[i] * step[i] : masked;
    }
    through_state(rows, s.S, from_start, shared.C, dC, parts.enter);
    __syncthreads();  // the scores are there
    inputs(s, to_end, step, h, parts);
    store_dx(b, chunk, h);
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = left(Tile<P_tile>{s.x}, row, i * 16);
    through_state(rows, s.G, leaving, shared.B, dB, parts.leave);
    states_dot(s, parts);
  }

  // dC += d(C Bᵀ) B and dB += d(C Bᵀ)ᵀ C, with d(C Bᵀ) as a sum of two bf16: rounded, and what that left.
  __device__ void through_products() {
    const Tile<Q> T{shared.scores};
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int t = 0; t < 4; ++t)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float *x = dCB[t] + 2 * i;
          const uint32_t both = pack(x[0], x[1]);
          *reinterpret_cast<uint32_t*>(T.at(r[i], half * 32 | t * 8 | q)) = both;
          x[0] -= unpack(both).x;
          x[1] -= unpack(both).y;
        }
      __syncthreads();
      add_products(T);
      __syncthreads();
    }
  }
  __device__ void add_products(Tile<Q> T) {
    const Tile<N_tile> B{shared.B}, C{shared.C};
#pragma unroll
    for (int k = 0; k < Q; k += 16) {
      const Left l = left(T, row, k), m = left_transposed(T, row, k);
#pragma unroll
      for (int t = 0; t < tiles; t += 2) {
        const int first = half * (N_tile / 2) | t * 8;
        if (k <= row) {
          const Right b = right_transposed(B, first, k);
          multiply_add(dC[t], l, b, 0);
          multiply_add(dC[t + 1], l, b, 1);
        }
        if (k >= row) {
          const Right c = right_transposed(C, first, k);
          multiply_add(dB[t], m, c, 0);
          multiply_add(dB[t + 1], m, c, 1);
        }
      }
    }
  }

  // One of dB and dC: rounded in its place, or as f32 in the part of this block.
  __device__ void store(const float (&gradient)[tiles][4], bf16* to, int64_t stride, float* part, int64_t token,
                        int64_t group, int rows) const {
    const int N = a.p.N;
#pragma unroll
    for (int t = 0; t < tiles; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = half * (N_tile / 2) | t * 8 | q;
        if (r[i] >= rows || n >= N) continue;
        const float x = gradient[t][2 * i], y = gradient[t][2 * i + 1];
        if (part == nullptr) store_pair(to + (token + r[i]) * stride + group * N + n, x, y);
        else *reinterpret_cast<float2*>(part + ((token + r[i]) * a.p.groups + group) * N + n) = {x, y};
      }
  }
};

template <int N_tile, bool documents>
__global__ void __launch_bounds__(gradient_threads, 1) gradients(const __grid_constant__ Gradients a) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<N_tile>*>(memory);
  const Problem& p = a.p;
  const int64_t chunk = blockIdx.x % p.chunks, b = blockIdx.x / p.chunks, group = blockIdx.y / a.splits,
                split = blockIdx.y % a.splits;
  const int64_t each = (p.heads_per_group() + a.splits - 1) / a.splits, part = split * each;
  const int64_t h0 = group * p.heads_per_group() + part, heads = min(each, p.heads_per_group() - part);
  const int64_t token = b * p.time + chunk * Q;

  copy_tile_async<gradient_threads>(Tile<N_tile>{shared.B}, a.B.at(token, group), a.B.stride, p.tokens_of(chunk), p.N);
  copy_tile_async<gradient_threads>(Tile<N_tile>{shared.C}, a.C.at(token, group), a.C.stride, p.tokens_of(chunk), p.N);
  commit_copies();
  if (heads > 0) load_head(a, b, chunk, h0, 0, shared);
  if (threadIdx.x < Q) shared.document[threadIdx.x] = p.document(b, chunk, static_cast<int>(threadIdx.x));
  wait_for_copies();
  __syncthreads();
  Warp<N_tile, documents> warp(a, shared, chunk * Q);

  const auto last_steps = [&](int64_t first, int64_t count) {  // step 5 of up to eight heads, a warp each
    const int64_t k = first + threadIdx.x / 32;
    if (k < first + count)
      time_steps(a, b, chunk, h0 + k, shared.parts[k % 9], shared.delta[k % 16], shared.sum[k % 16], shared.document);
  };
  constexpr int warps = gradient_threads / 32;
  for (int64_t k = 0; k < heads; ++k) {
    wait_for_copies();
    __syncthreads();  // this head is there, the last one is done: its stage, scores and dx may be written over
    if (k + 1 < heads) load_head(a, b, chunk, h0 + k + 1, k + 1, shared);
    if (k > 0 && k % warps == 0) last_steps(k - warps, warps);
    warp.head(b, chunk, h0 + k, k);
  }
  __syncthreads();
  if (heads > 0) last_steps((heads - 1) / warps * warps, (heads - 1) % warps + 1);
  warp.through_products();
  const int64_t size = p.batch * p.time * p.groups * p.N;
  const auto part_of = [&](float* parts) { return parts == nullptr ? nullptr : parts + split * size; };
  warp.store(warp.dB, a.dB, a.stride_dB, part_of(a.dB_parts), token, group, p.tokens_of(chunk));
  warp.store(warp.dC, a.dC, a.stride_dC, part_of(a.dC_parts), token, group, p.tokens_of(chunk));
}

}  // namespace

int64_t gradients_shared(int N) {
  if (wgmma::available()) return gradients_shared_sm90(N);
  return N <= 64 ? sizeof(Shared<64>) : sizeof(Shared<128>);
}

void launch_gradients(Cuda on, const Gradients& a) {
  if (wgmma::available()) return launch_gradients_sm90(on, a);
  with_constants(a.p, [&](auto tile, auto documents) {
    constexpr int N = tile();
    launch(gradients<N, documents()>, dim3(blocks(a.p.batch * a.p.chunks, 1), blocks(a.p.groups * a.splits, 1)),
           gradient_threads, sizeof(Shared<N>), on, a);
  });
}

}  // namespace adder::ssd::chunked
