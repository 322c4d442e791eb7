// The state from chunk to chunk: one block a (row, head, segment), the state in registers as sums of products.
// Floor: x and B read, 2 T H P N / Q bytes of states written; B comes from the L2 cache for all heads but one.
// On Hopper chunked_sweep_sm90.cu walks.
#include "adder/kernels/ssd/chunked_sweep.cuh"
#include "adder/kernels/wgmma.cuh"

#include <algorithm>

namespace adder::ssd::chunked {
namespace {

using namespace mma;

constexpr int threads = 128;  // four warps: two halves of P times two halves of N

template <int N_tile>
struct alignas(128) Shared {
  struct Stage {
    bf16 x[Q * P_tile], B[Q * N_tile];
    float delta[Q], sum[Q];
  };
  Stage stage[2];
  bf16 state[P_tile * N_tile];
  float weight[Q];
};

template <int N_tile>
__device__ void load_stage(const Problem& p, const Walk& w, int64_t b, int64_t h, int64_t chunk,
                           typename Shared<N_tile>::Stage& to) {
  const int64_t token = b * p.time + chunk * Q;
  copy_tile_async<threads>(Tile<P_tile>{to.x}, w.x.at(token, h), w.x.stride, p.tokens_of(chunk), p.P);
  copy_tile_async<threads>(Tile<N_tile>{to.B}, w.B.at(token, h / p.heads_per_group()), w.B.stride, p.tokens_of(chunk),
                           p.N);
  const int i = static_cast<int>(threadIdx.x) * 4;
  const int64_t at = p.decays_at(b, chunk, h);
  if (i < Q) copy_async(to.delta + i, p.delta + at + i, true);
  else if (i < 2 * Q) copy_async(to.sum + i - Q, p.sum + at + i - Q, true);
  commit_copies();
}

// w_j = e^{cs_Q - cs_j} Δ_j, or e^{cs_i} backward, of one token; masked where another document's state is concerned.
__device__ float weight_of(const Problem& p, const Walk& w, int64_t b, int64_t chunk, int i, const float* delta,
                           const float* sum) {
  if (w.reverse) return p.document(b, chunk, i) < chunk * Q ? power_of_2(sum[i]) : masked;
  const bool leaves = p.document(b, chunk, i) == p.document(b, chunk, Q - 1);
  return leaves ? power_of_2(sum[Q - 1] - sum[i]) * delta[i] : masked;
}

// The state of one block. A warp holds 32 rows p and half of the columns n.
template <int N_tile, bool documents>
struct State {
  static constexpr int pairs = N_tile / 32;  // of neighbouring 8 columns
  float s[2][2 * pairs][4];
  int p0, n0;

  __device__ State()
      : p0(static_cast<int>(threadIdx.x / 64) * 32), n0(static_cast<int>(threadIdx.x / 32 % 2) * (N_tile / 2)) {}

  // f(two neighbours of a row, p, n)
  template <class F>
  __device__ void each_pair(F&& f) {
    const int r = lane() / 4, q = lane() % 4;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int t = 0; t < 2 * pairs; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(*reinterpret_cast<float2*>(s[m][t] + 2 * half), p0 + m * 16 + half * 8 + r, n0 | t * 8 | 2 * q);
  }

  // S = decay S + Σ_j (w_j x_j) B_jᵀ
  __device__ void update(float decay, typename Shared<N_tile>::Stage& stage, const float* weight) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int t = 0; t < 2 * pairs; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][t][i] = times<documents>(decay, s[m][t][i]);
    const Tile<P_tile> x{stage.x};
    const Tile<N_tile> B{stage.B};
#pragma unroll
    for (int k = 0; k < Q; k += 16) {
      Left a[2] = {left_transposed(x, p0, k), left_transposed(x, p0 | 16, k)};
      weigh<documents>(a[0], weight + k);
      weigh<documents>(a[1], weight + k);
#pragma unroll
      for (int t = 0; t < pairs; ++t) {
        const Right b = right_transposed(B, n0 | t * 16, k);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add(s[m][2 * t], a[m], b, 0);
          multiply_add(s[m][2 * t + 1], a[m], b, 1);
        }
      }
    }
  }
};

template <int N_tile, bool documents>
__global__ void __launch_bounds__(threads, 3)
    walk(const Problem p, const __grid_constant__ Walk first, const __grid_constant__ Walk second, int segments,
         int64_t chunks_each) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<N_tile>*>(memory);
  const Walk& w = blockIdx.y == 0 ? first : second;
  const int64_t segment = blockIdx.x % segments, row_head = blockIdx.x / segments;
  const int64_t b = row_head / p.heads, h = row_head % p.heads, cells = int64_t{p.P} * p.N;
  const int64_t from = min(segment * chunks_each, p.chunks),
                to = w.skips(segment, segments) ? from : min(from + chunks_each, p.chunks);
  const auto chunk_at = [&](int64_t k) { return w.reverse ? to - 1 - k : from + k; };

  State<N_tile, documents> state;
  state.each_pair([&](float2& s, int row, int n) {
    s = {0, 0};
    if (w.begin != nullptr && row < p.P && n < p.N)
      s = *reinterpret_cast<const float2*>(w.begin + blockIdx.x * cells + row * p.N + n);
  });
  float left = 1;
  if (from < to) load_stage<N_tile>(p, w, b, h, chunk_at(0), shared.stage[0]);
  for (int64_t k = 0; k < to - from; ++k) {
    const int64_t chunk = chunk_at(k);
    auto& stage = shared.stage[k % 2];
    wait_for_copies();
    __syncthreads();  // the stage is there, and nobody reads the other one, the weights or the tile of the state
    if (k + 1 < to - from) load_stage<N_tile>(p, w, b, h, chunk_at(k + 1), shared.stage[(k + 1) % 2]);
    if (threadIdx.x < Q)
      shared.weight[threadIdx.x] = weight_of(p, w, b, chunk, static_cast<int>(threadIdx.x), stage.delta, stage.sum);
    const Tile<N_tile> tile{shared.state};
    if (w.states != nullptr)
      state.each_pair([&](const float2& s, int row, int n) { store_pair(tile.at(row, n), s.x, s.y); });
    __syncthreads();
    if (w.states != nullptr) {
      bf16* out = w.states + ((b * p.chunks + chunk) * p.heads + h) * (P_tile * N_tile);
      for (int i = static_cast<int>(threadIdx.x) * 8; i < P_tile * N_tile; i += threads * 8)
        *reinterpret_cast<uint4*>(out + i) = *reinterpret_cast<const uint4*>(tile.at(i / N_tile, i % N_tile));
    }
    const float decay = p.document(b, chunk, Q - 1) < chunk * Q ? power_of_2(stage.sum[Q - 1]) : masked;
    left = documents && (left < 0 || decay < 0) ? masked : left * decay;
    state.update(decay, stage, shared.weight);
  }
  if (w.end != nullptr)
    state.each_pair([&](const float2& s, int row, int n) {
      if (row < p.P && n < p.N) *reinterpret_cast<float2*>(w.end + blockIdx.x * cells + row * p.N + n) = s;
    });
  if (w.decay != nullptr && threadIdx.x == 0) w.decay[blockIdx.x] = left;
}

// The state that enters each segment, in place of the one it leaves by itself; and the last one.
struct Carry {
  float* local;        // [batch, head, segment, P, N]
  const float* decay;  // [batch, head, segment]
  const float* begin;  // [batch, head, P, N], or null: zero
  float* end;          // or null
  int64_t states, cells;
  int segments;
  bool reverse;
};
__global__ void __launch_bounds__(256) carry(Carry c) {
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x, state = i / c.cells;
  if (state >= c.states) return;
  float s = c.begin == nullptr ? 0.0f : c.begin[i];
  for (int k = 0; k < c.segments; ++k) {
    const int64_t segment = state * c.segments + (c.reverse ? c.segments - 1 - k : k);
    float& here = c.local[segment * c.cells + i % c.cells];
    const float decay = c.decay[segment], own = here;
    here = s;
    s = decay < 0 ? own : decay * s + own;  // masked: nothing passes, NaN neither
  }
  if (c.end != nullptr) c.end[i] = s;
}

Walk walk_of(const Sweep& s) {
  return {.x = Tokens(s.x),
          .B = Tokens(s.B),
          .begin = floats(s.begin),
          .states = s.states ? s.states.data<bf16>() : nullptr,
          .end = floats(s.end),
          .decay = nullptr,
          .reverse = s.reverse};
}

void start(Cuda on, const Problem& p, const Walk* walks, size_t count, const Segments& cut) {
  if (wgmma::available()) return sweep_sm90(on, p, walks, count, cut);
  with_constants(p, [&](auto tile, auto documents) {
    constexpr int N = tile();
    launch(walk<N, documents()>, dim3(blocks(p.batch * p.heads * cut.count, 1), static_cast<unsigned>(count)), threads,
           sizeof(Shared<N>), on, p, walks[0], walks[count - 1], cut.count, cut.chunks);
  });
}

// One or two sweeps, beside each other.
void run(Cuda on, const Problem& p, std::span<const Sweep> sweeps) {
  const Segments cut(p, sweeps.size());
  std::array<Tensor, 2> first;
  if (cut.count > 1) first = enter_segments(on, p, sweeps, cut);
  Walk walks[2] = {walk_of(sweeps.front()), walk_of(sweeps.back())};
  for (size_t i = 0; cut.count > 1 && i < sweeps.size(); ++i) {
    walks[i].begin = floats(first[i]);
    walks[i].end = nullptr;  // written already
  }
  start(on, p, walks, sweeps.size(), cut);
}

}  // namespace

Segments::Segments(const Problem& p, size_t sweeps) {
  // Three blocks on each of 132 processors; a segment is worth its second pass from four chunks on.
  const int64_t wanted = 396 / (p.batch * p.heads * static_cast<int64_t>(sweeps));
  count = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, p.chunks / 4)));
  chunks = (p.chunks + count - 1) / count;
}

std::array<Tensor, 2> enter_segments(Cuda on, const Problem& p, std::span<const Sweep> sweeps, const Segments& cut) {
  const int64_t states = p.batch * p.heads, cells = int64_t{p.P} * p.N;
  std::array<Tensor, 2> local;
  Tensor decay[2];
  Walk walks[2] = {walk_of(sweeps.front()), walk_of(sweeps.back())};
  for (size_t i = 0; i < sweeps.size(); ++i) {
    local[i] = Tensor({states, cut.count, cells}, DType::f32, Device::cuda);
    decay[i] = Tensor({states, cut.count}, DType::f32, Device::cuda);
    walks[i].begin = nullptr;
    walks[i].states = nullptr;
    walks[i].end = floats(local[i]);
    walks[i].decay = floats(decay[i]);
    walks[i].but_last = !sweeps[i].end;
  }
  start(on, p, walks, sweeps.size(), cut);
  for (size_t i = 0; i < sweeps.size(); ++i)
    launch(carry, blocks(states * cells, 256), 256, 0, on,
           Carry{.local = floats(local[i]), .decay = floats(decay[i]), .begin = floats(sweeps[i].begin),
                 .end = floats(sweeps[i].end), .states = states, .cells = cells, .segments = cut.count,
                 .reverse = sweeps[i].reverse});
  return local;
}

void sweep(Cuda on, const Problem& p, const Sweep& first) { run(on, p, {&first, 1}); }
void sweep(Cuda on, const Problem& p, const Sweep& first, const Sweep& second) {
  const Sweep both[2] = {first, second};
  run(on, p, both);
}

}  // namespace adder::ssd::chunked
