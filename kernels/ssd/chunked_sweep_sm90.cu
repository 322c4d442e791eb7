// The sweep on Hopper: one block a (row, head, segment), one warpgroup, S [p, n] in registers as sums of products.
//
//   S = e^{cs_Q} S + (w x)ᵀ B       64 x N x 64: (w x)ᵀ [p, j] from registers, B [j, n] from shared memory
//
// The states go out as they lie in shared memory, in panels, and who reads them copies them as they are. Floor: x and B
// read, 2 T H P N / Q bytes of states written; B comes from the L2 cache for all heads but one.
#include "adder/kernels/ssd/chunked_state_sm90.cuh"
#include "adder/kernels/ssd/chunked_sweep.cuh"

namespace adder::ssd::chunked {
namespace {

using namespace hopper;

constexpr int warps = state_threads / 32;

template <int N_tile>
struct alignas(1024) Shared {
  bf16 x[2][Q * P_tile], B[2][Q * N_tile], state[P_tile * N_tile];
  Stage stage[2];
  float weight[warps][Q];  // each warp its own
};

// A block's part of the problem.
struct Part {
  int b, h, group, from, to;  // chunks [from, to)

  __device__ Part(const Problem& p, const Walk& w, int segments, int64_t chunks_each) {
    const unsigned row_head = blockIdx.x / static_cast<unsigned>(segments), heads = static_cast<unsigned>(p.heads);
    const int64_t segment = blockIdx.x % static_cast<unsigned>(segments);
    b = static_cast<int>(row_head / heads);
    h = static_cast<int>(row_head % heads);
    group = h / static_cast<int>(p.heads_per_group());
    from = static_cast<int>(min(segment * chunks_each, p.chunks));
    to = static_cast<int>(min(from + chunks_each, p.chunks));
    if (w.skips(segment, segments)) to = from;
  }
};

template <int N_tile, bool documents>
__device__ void load(const Problem& p, const Walk& w, const Part& part, int chunk, int side, Shared<N_tile>& to) {
  load_tokens<documents>(p, w.x, part.b, part.h, chunk, to.x[side], to.stage[side]);
  wgmma::copy_panels_async<state_threads, N_tile>(to.B[side], w.B.at(part.b * p.time + int64_t{chunk} * Q, part.group),
                                                  w.B.stride, p.tokens_of(chunk), p.N);
  commit_copies();
}

// The warp's rows of the rounded state, from the panels to where they lie in memory.
template <int N_tile>
__device__ void store_rows(const bf16* panels, bf16* to, int p0) {
  __syncwarp();
#pragma unroll
  for (int n = 0; n < N_tile; n += panel)
#pragma unroll
    for (int i = 0; i < 16 * panel; i += 32 * 8) {
      const int at = n / panel * panel_size + p0 * panel + i + lane() * 8;
      *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(panels + at);
    }
  __syncwarp();
}

template <int N_tile, bool documents>
__global__ void __launch_bounds__(state_threads, 3)
    walk(const __grid_constant__ Problem p, const __grid_constant__ Walk first, const __grid_constant__ Walk second,
         int segments, int64_t chunks_each) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<N_tile>*>(memory);
  const Walk& w = blockIdx.y == 0 ? first : second;
  const Part part(p, w, segments, chunks_each);
  const int64_t cells = int64_t{p.P} * p.N;
  const int count = part.to - part.from;
  const auto chunk_at = [&](int k) { return w.reverse ? part.to - 1 - k : part.from + k; };

  State<N_tile> state;
  state.read(p, w.begin == nullptr ? nullptr : w.begin + blockIdx.x * cells);
  float left = 1;
  if (count > 0) load<N_tile, documents>(p, w, part, chunk_at(0), 0, shared);
  for (int k = 0; k < count; ++k) {
    const int chunk = chunk_at(k), side = k % 2;
    const Stage& stage = shared.stage[side];
    if (w.states != nullptr) {
      state.round_into(shared.state, panel_size);
      store_rows<N_tile>(shared.state, w.states + ((part.b * p.chunks + chunk) * p.heads + part.h) * (P_tile * N_tile),
                         state.p0);
    }
    wait_for_copies();
    wgmma::published();
    __syncthreads();  // this chunk is there, and nobody reads the one before
    if (k + 1 < count) load<N_tile, documents>(p, w, part, chunk_at(k + 1), 1 - side, shared);
    const float decay = from_start<documents>(stage, chunk, Q - 1);
    left = documents && (left < 0 || decay < 0) ? masked : left * decay;
    state.template scale<documents>(decay);
    float* weight = shared.weight[threadIdx.x / 32];
#pragma unroll
    for (int i = lane(); i < Q; i += 32)
      weight[i] = w.reverse ? from_start<documents>(stage, chunk, i) : to_end<documents>(stage, i);
    __syncwarp();
    Left weighted[Q / 16];
    state.template update<documents>(Tile<P_tile>{shared.x[side]}, weight, shared.B[side], panel_size * sizeof(bf16),
                                     weighted);
    wgmma::wait<0>(state.s);
    __syncwarp();  // the weights may be written over
  }
  if (w.end != nullptr) state.write(p, w.end + blockIdx.x * cells);
  if (w.decay != nullptr && threadIdx.x == 0) w.decay[blockIdx.x] = left;
}

}  // namespace

void sweep_sm90(Cuda on, const Problem& p, const Walk* walks, size_t count, const Segments& cut) {
  with_constants(p, [&](auto tile, auto documents) {
    constexpr int N = tile();
    launch(walk<N, documents()>, dim3(blocks(p.batch * p.heads * cut.count, 1), static_cast<unsigned>(count)),
           state_threads, sizeof(Shared<N>), on, p, walks[0], walks[count - 1], cut.count, cut.chunks);
  });
}

}  // namespace adder::ssd::chunked
