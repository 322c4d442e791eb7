// Forward of the chunked form on Hopper, the state on the chip from chunk to chunk: one block a (row, head, segment),
// one warpgroup, S [p, n] in registers as sums of products. A chunk, with rows x columns x k of the products:
//
//   1.  [C Bᵀ | C Sᵀ]               64 x 128 x N    C [i, n]; B [j, n] and S [p, n], rounded: one right operand
//   2.  y = e^{cs} (C Sᵀ) + M x     64 x 64 x 64    M [i, j] from C Bᵀ, in registers
//   3.  S = e^{cs_Q} S + (w x)ᵀ B   64 x N x 64     (w x)ᵀ [p, j] in registers
//   4.  y + D x, through the gate, rounded, out
//
// x of the next chunk is loaded behind all this, B and C behind 4.; for the rest three blocks on a processor fill each
// other's waits. With few rows and heads rows are cut in segments, whose first states come from enter_segments.
//
// Floor: x read, y written; B and C read once from memory (neighbouring blocks are heads of one row), from the L2 cache
// for each head. 2 Q (Q N + 2 P N + Q P) FLOPs a chunk and head, each with its own C Bᵀ: at P 64, N 128 some 900 cycles
// of a processor's tensor cores (B 32, L 2048, H 24: 0.10 ms), but some 1350 of its shared memory, of which 1. takes
// 400.
#include "adder/kernels/ssd/chunked_outputs.cuh"
#include "adder/kernels/ssd/chunked_state_sm90.cuh"

namespace adder::ssd::chunked {
namespace {

using namespace hopper;

constexpr int threads = state_threads;
constexpr int blocks_a_processor = 3;

struct Arguments {
  Problem p;
  Tokens x, B, C;
  Outputs out;
  const float* begin;  // [batch, head, segment, P, N], or null: zero
  float* end;          // [batch, head, P, N], or null
  Segments cut;
};

template <int N_tile>
struct alignas(1024) Shared {
  struct Right {
    bf16 B[Q * panel], S[P_tile * panel];  // 128 rows of a right operand; y goes out through the first S
  };
  Right right[N_tile / panel];
  bf16 C[N_tile / panel][Q * panel], x[2][Q * P_tile];
  Stage stage[2];
  float weight[threads / 32][Q];  // each warp its own
};
template <int N_tile>
constexpr int apart = sizeof(typename Shared<N_tile>::Right) / sizeof(bf16);  // elements from panel to panel

// A block's part of the problem.
struct Part {
  int b, h, group, segment, from, to;  // chunks [from, to)

  // Neighbours are heads: they read the same B and C.
  __device__ explicit Part(const Arguments& a) {
    const unsigned heads = static_cast<unsigned>(a.p.heads), row = blockIdx.x / heads,
                   cuts = static_cast<unsigned>(a.cut.count);
    h = static_cast<int>(blockIdx.x % heads);
    group = h / static_cast<int>(a.p.heads_per_group());
    b = static_cast<int>(row / cuts);
    segment = static_cast<int>(row % cuts);
    from = static_cast<int>(min(segment * a.cut.chunks, a.p.chunks));
    to = static_cast<int>(min(from + a.cut.chunks, a.p.chunks));
  }
  // Where a state of the block lies.
  __device__ int64_t state(const Arguments& a) const {
    return ((b * a.p.heads + h) * a.cut.count + segment) * (int64_t{a.p.P} * a.p.N);
  }
};

template <bool documents>
__device__ void load_x(const Arguments& a, const Part& part, int chunk, bf16* x, Stage& to) {
  load_tokens<documents>(a.p, a.x, part.b, part.h, chunk, x, to);
  commit_copies();
}

template <int N_tile>
__device__ void load_B_and_C(const Arguments& a, const Part& part, int chunk, Shared<N_tile>& to) {
  const Problem& p = a.p;
  const int64_t token = part.b * p.time + int64_t{chunk} * Q;
  const int rows = p.tokens_of(chunk);
  wgmma::copy_panels_async<threads, N_tile, apart<N_tile>>(to.right[0].B, a.B.at(token, part.group), a.B.stride, rows,
                                                           p.N);
  wgmma::copy_panels_async<threads, N_tile>(to.C[0], a.C.at(token, part.group), a.C.stride, rows, p.N);
  commit_copies();
}

// By one warp.
template <bool documents>
__device__ void weights(const Stage& s, float* to) {
#pragma unroll
  for (int j = lane(); j < Q; j += 32) to[j] = to_end<documents>(s, j);
  __syncwarp();
}

// Issues y = e^{cs} y + M x.   M [i, j] from C Bᵀ, from registers; x [j, p]: k = j runs across its rows.
template <bool documents>
__device__ void through_scores(const Stage& s, int chunk, Tile<P_tile> x, int r, const float (&CB)[Q / 8][4],
                               Left (&M)[Q / 16], float (&y)[P_tile / 8][4]) {
  const Scores<documents> scores(s.sum, s.delta, s.document, r);
#pragma unroll
  for (int k = 0; k < Q / 16; ++k) M[k] = scores(CB, k * 16);
  const float left[2] = {from_start<documents>(s, chunk, r), from_start<documents>(s, chunk, r + 8)};
#pragma unroll
  for (int t = 0; t < P_tile / 8; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) y[t][i] = times<documents>(left[i / 2], y[t][i]);
  wgmma::hold(y);
  wgmma::hold(M);
  wgmma::begin();
  const auto right = wgmma::across_k(x.data, 0);
#pragma unroll
  for (int k = 0; k < Q / 16; ++k) wgmma::multiply_add<true>(y, M[k], right + k * 16 * panel * sizeof(bf16));
  wgmma::commit();
}

template <int N_tile, bool documents>
__global__ void __launch_bounds__(threads, blocks_a_processor) walk(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<N_tile>*>(memory);
  const Part part(a);
  const float skip = a.out.skip(part.h);

  State<N_tile> state;
  state.read(a.p, a.begin == nullptr ? nullptr : a.begin + part.state(a));
  if (part.from < part.to) {
    load_x<documents>(a, part, part.from, shared.x[0], shared.stage[0]);
    load_B_and_C(a, part, part.from, shared);
  }
  for (int chunk = part.from; chunk < part.to; ++chunk) {
    const int side = (chunk - part.from) % 2;
    const Stage& stage = shared.stage[side];
    const Tile<P_tile> x{shared.x[side]};
    state.round_into(shared.right[0].S, apart<N_tile>);  // over y's rows of the same warp, which are out
    wait_for_copies();
    wgmma::published();
    __syncthreads();  // all that 1. to 3. read is there, and nobody reads the other x
    if (chunk + 1 < part.to) load_x<documents>(a, part, chunk + 1, shared.x[1 - side], shared.stage[1 - side]);
    state.template scale<documents>(from_start<documents>(stage, chunk, Q - 1));

    // C [i, n] times B [j, n] and S [p, n]: k = n runs along the rows of all three.
    float CB[Q / 8][4] = {}, y[P_tile / 8][4] = {};
    wgmma::begin();
    const auto C = wgmma::along_k(shared.C[0], 0), B_and_S = wgmma::along_k(shared.right[0].B, 0);
#pragma unroll
    for (int n = 0; n < N_tile; n += 16)
      wgmma::multiply_add<false>(CB, y, C + (n / panel * sizeof(shared.C[0]) + n % panel * 2),
                                 B_and_S + (n / panel * sizeof(shared.right[0]) + n % panel * 2), n > 0);
    wgmma::commit();
    wgmma::wait<0>(CB, y);
    Left M[Q / 16], weighted[Q / 16];
    float* weight = shared.weight[threadIdx.x / 32];
    const auto rest = [&](auto masks) {
      through_scores<masks()>(stage, chunk, x, state.p0 + lane() / 4, CB, M, y);
      weights<masks()>(stage, weight);
      state.template update<masks()>(x, weight, shared.right[0].B, sizeof(shared.right[0]), weighted);
      wgmma::wait<0>(y, state.s);
    };
    // Most chunks are in the middle of a document.
    if (!documents || (stage.document[0] == stage.document[Q - 1] && stage.document[0] < chunk * Q))
      rest(std::false_type{});
    else if constexpr (documents) rest(std::true_type{});
    __syncthreads();  // nobody reads B, C or S any more
    if (chunk + 1 < part.to) load_B_and_C(a, part, chunk + 1, shared);
    a.out.finish(a.p, {part.b, chunk, part.h}, skip, x.data, shared.right[0].S, state.p0, y);
  }
  if (a.end != nullptr) state.write(a.p, a.end + part.state(a));
}

}  // namespace

void forward_sm90(Cuda on, const Ssd& op, const SsdResult& to, const Problem& p) {
  const Sweep sweep{
      .x = op.x, .B = op.B, .begin = op.has_initial_state ? to.states : Tensor(), .end = to.final_state};
  const Segments cut(p, 1);
  const Tensor first = cut.count == 1 ? sweep.begin : enter_segments(on, p, {&sweep, 1}, cut)[0];
  const Arguments a{.p = p,
                    .x = Tokens(op.x),
                    .B = Tokens(op.B),
                    .C = Tokens(op.C),
                    .out = Outputs(op, to),
                    .begin = floats(first),
                    .end = cut.count == 1 ? floats(sweep.end) : nullptr,  // else written already
                    .cut = cut};
  with_constants(p, [&](auto tile, auto documents) {
    constexpr int N = tile();
    launch(walk<N, documents()>, blocks(p.batch * p.heads * cut.count, 1), threads, sizeof(Shared<N>), on, a);
  });
}

}  // namespace adder::ssd::chunked
