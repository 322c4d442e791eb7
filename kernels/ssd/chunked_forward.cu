// y from the tokens of a chunk and the state that enters it: one block a (chunk, group), four warps of 16 tokens each.
// Floor: x and the states read, y written; C Bᵀ and C stay in registers over the heads.
// On Hopper chunked_forward_sm90.cu does it another way.
#include "adder/core/copy.h"
#include "adder/kernels/ssd/chunked_outputs.cuh"
#include "adder/kernels/wgmma.cuh"

namespace adder::ssd::chunked {
namespace {

using namespace mma;

constexpr int threads = 128;

struct Arguments {
  Problem p;
  Tokens x, B, C;
  const bf16* states;
  Outputs out;
  int64_t splits;
};

template <int N_tile>
struct alignas(128) Shared {
  struct Stage {
    bf16 x[Q * P_tile], state[P_tile * N_tile];
    float delta[Q], sum[Q];
  };
  Stage stage[2];
  bf16 y[Q * P_tile];
  int document[Q];
};

template <int N_tile>
__device__ void load_stage(const Arguments& a, int64_t b, int64_t chunk, int64_t h,
                           typename Shared<N_tile>::Stage& to) {
  const Problem& p = a.p;
  copy_tile_async<threads>(Tile<P_tile>{to.x}, a.x.at(b * p.time + chunk * Q, h), a.x.stride, p.tokens_of(chunk), p.P);
  const int64_t state = (b * p.chunks + chunk) * p.heads + h;
  copy_tile_async<threads>(Tile<N_tile>{to.state}, a.states + state * (P_tile * N_tile), N_tile, P_tile, N_tile);
  const int i = static_cast<int>(threadIdx.x) * 4;
  if (i < Q) copy_async(to.delta + i, p.delta + state * Q + i, true);
  else if (i < 2 * Q) copy_async(to.sum + i - Q, p.sum + state * Q + i - Q, true);
  commit_copies();
}

// What one warp keeps over the heads: its 16 rows of C, and of C Bᵀ the columns that are not masked.
template <int N_tile, bool documents>
struct Rows {
  int first;  // token
  Left C[N_tile / 16];
  float CB[Q / 8][4];

  __device__ Rows(Tile<N_tile> C_tile, Tile<N_tile> B) : first(static_cast<int>(threadIdx.x / 32) * 16) {
#pragma unroll
    for (int k = 0; k < N_tile / 16; ++k) C[k] = left(C_tile, first, k * 16);
#pragma unroll
    for (int j = 0; j < Q; j += 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) CB[j / 8][i] = CB[j / 8 + 1][i] = 0;
      if (j > first) continue;
#pragma unroll
      for (int k = 0; k < N_tile / 16; ++k) {
        const Right b = right(B, j, k * 16);
        multiply_add(CB[j / 8], C[k], b, 0);
        multiply_add(CB[j / 8 + 1], C[k], b, 1);
      }
    }
  }

  // e^{cs_i} S C_i of every row: y[p / 8] are sums.
  __device__ void through_state(typename Shared<N_tile>::Stage& s, const float (&from_start)[2],
                                float (&y)[8][4]) const {
    const Tile<N_tile> state{s.state};
#pragma unroll
    for (int k = 0; k < N_tile / 16; ++k)
#pragma unroll
      for (int p = 0; p < P_tile; p += 16) {
        const Right b = right(state, p, k * 16);
        multiply_add(y[p / 8], C[k], b, 0);
        multiply_add(y[p / 8 + 1], C[k], b, 1);
      }
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) y[t][i] = times<documents>(from_start[i / 2], y[t][i]);
  }

  // Σ_{j<=i} (C_i·B_j) e^{cs_i - cs_j} Δ_j x_j
  __device__ void through_scores(typename Shared<N_tile>::Stage& s, const int* document, float (&y)[8][4]) const {
    const Tile<P_tile> x{s.x};
    const Scores<documents> scores(s.sum, s.delta, document, first + lane() / 4);
#pragma unroll
    for (int block = 0; block < Q; block += 16) {
      if (block > first) break;
      const Left M = scores(CB, block);
#pragma unroll
      for (int p = 0; p < P_tile; p += 16) {
        const Right b = right_transposed(x, p, block);
        multiply_add(y[p / 8], M, b, 0);
        multiply_add(y[p / 8 + 1], M, b, 1);
      }
    }
  }
};

template <int N_tile, bool documents>
__global__ void __launch_bounds__(threads, 3) outputs(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<N_tile>*>(memory);
  const Problem& p = a.p;
  const int64_t chunk = blockIdx.x % p.chunks, b = blockIdx.x / p.chunks, group = blockIdx.y / a.splits;
  const int64_t each = (p.heads_per_group() + a.splits - 1) / a.splits, part = blockIdx.y % a.splits * each;
  const int64_t h0 = group * p.heads_per_group() + part, heads = min(each, p.heads_per_group() - part);
  if (heads <= 0) return;

  // C and B pass through the memory of the two stages.
  const Tile<N_tile> C{shared.stage[0].state}, B{shared.stage[1].state};
  const int64_t token = b * p.time + chunk * Q;
  copy_tile_async<threads>(C, a.C.at(token, group), a.C.stride, p.tokens_of(chunk), p.N);
  copy_tile_async<threads>(B, a.B.at(token, group), a.B.stride, p.tokens_of(chunk), p.N);
  commit_copies();
  if (threadIdx.x < Q) shared.document[threadIdx.x] = p.document(b, chunk, static_cast<int>(threadIdx.x));
  wait_for_copies();
  __syncthreads();
  const Rows<N_tile, documents> rows(C, B);
  __syncthreads();

  const int r = rows.first + lane() / 4;
  const bool enters[2] = {shared.document[r] < chunk * Q, shared.document[r + 8] < chunk * Q};
  load_stage<N_tile>(a, b, chunk, h0, shared.stage[0]);
  for (int64_t k = 0; k < heads; ++k) {
    wait_for_copies();
    __syncthreads();  // this stage is there, and nobody reads the other one
    if (k + 1 < heads) load_stage<N_tile>(a, b, chunk, h0 + k + 1, shared.stage[(k + 1) % 2]);
    auto& stage = shared.stage[k % 2];
    const float from_start[2] = {enters[0] ? power_of_2(stage.sum[r]) : masked,
                                 enters[1] ? power_of_2(stage.sum[r + 8]) : masked};
    float y[8][4] = {};
    rows.through_state(stage, from_start, y);
    rows.through_scores(stage, shared.document, y);
    a.out.finish(p, {b, chunk, h0 + k}, a.out.skip(h0 + k), stage.x, shared.y, rows.first, y);
  }
}

}  // namespace

void forward(Cuda on, const Ssd& op, const SsdResult& to) {
  if (op.has_initial_state) copy(on, op.initial_state, to.states);  // which backward will read
  const Decays decays(on, op);
  const Problem p(op, decays);
  if (wgmma::available()) return forward_sm90(on, op, to, p);
  const Tensor states = state_tiles(p);
  sweep(on, p,
        {.x = op.x,
         .B = op.B,
         .begin = op.has_initial_state ? to.states : Tensor(),
         .states = states,
         .end = to.final_state});
  const int64_t splits = head_splits(p, 3168);  // some eight waves, so that the last one costs little
  const Arguments a{.p = p,
                    .x = Tokens(op.x),
                    .B = Tokens(op.B),
                    .C = Tokens(op.C),
                    .states = states.data<bf16>(),
                    .out = Outputs(op, to),
                    .splits = splits};
  with_constants(p, [&](auto tile, auto documents) {
    constexpr int N = tile();
    launch(outputs<N, documents()>, dim3(blocks(p.batch * p.chunks, 1), blocks(p.groups * splits, 1)), threads,
           sizeof(Shared<N>), on, a);
  });
}

}  // namespace adder::ssd::chunked
