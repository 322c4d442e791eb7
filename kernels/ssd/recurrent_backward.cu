// With G_t = dL/dS_t, which holds what the tokens after t say about S_t:
//
//   G_t = dy_t C_tᵀ + e^{a_{t+1}} G_{t+1}        dC_t = S_tᵀ dy_t          dB_t = Δ_t G_tᵀ x_t
//   u_t = G_t B_t      dx_t = Δ_t u_t + D dy_t      da_t = e^{a_t} <G_t, S_{t-1}>      dΔ_t = u_t·x_t + A da_t
//
// The states are found again: a walk forward keeps one every four tokens, the walk back computes those between. da is
// a sum of products and no difference of long sums, so that it keeps its digits at any decay. Time is cut into
// segments to bound what is kept; a first walk keeps the state that enters each segment.
//
// Sums: over the rows of a block in shared memory, warp by warp; over blocks and heads by sum_heads, in order; over
// time and batch in f64.
// Cost, a token and head, P = width, N = state: some 16 P N operations in f32, 2 P N bytes kept and read, and 16 N
// bytes of parts of dB and dC a block of rows.
#include "adder/kernels/ssd/recurrent.h"
#include "adder/kernels/ssd/recurrent_tile.cuh"
#include "adder/kernels/ssd/time_step.cuh"

#include <algorithm>

namespace adder::ssd {
namespace {

constexpr int tile = 4;           // tokens between kept states
constexpr int64_t whole = 8;      // segments are a multiple of this many tokens
constexpr int64_t scratch = int64_t{1} << 30;  // bytes

template <class T>
struct WalkBack {
  Extent n;
  Tokens<T> x, B, C, dy, z, dx;
  const float *delta, *decay, *D, *dfinal;
  bool per_channel;
  const float* states;  // [tile of the segment, block, row, column]
  float* carry;         // [block, row, column]: what the tokens after the segment say about its last state, and so on
  float* dinitial;      // [batch, head, width, state] or null
  float* parts;         // [B or C, batch, token of the segment, head, block of rows, state]
  float* sums;          // [u·x or da, block, time]
  float* dD;            // [batch, head, width] or null
  int64_t begin, end;
};

template <int K>
struct Shared {
  static constexpr int n = Cut<K>::piece, R = Cut<K>::warp_rows;
  Tile<K, tile> now;
  Floats<n> before[tile][R][K / n][threads];  // S_{t-1}; each thread reads its own
  float parts[2][warps][tile][Cut<K>::columns];
  float dy[tile][Cut<K>::rows], dx[tile][Cut<K>::rows];
  float sums[2][tile][warps];
};

template <class T, int K>
__device__ float fetch_dy(const WalkBack<T>& p, const Self<K>& self, int64_t t0) {
  using F = Fetched<K, tile>;
  const int i = static_cast<int>(threadIdx.x), tokens = static_cast<int>(min(int64_t{tile}, p.end - t0));
  const int64_t first = self.b * p.n.time + t0;
  const float dy = F::of_row(p.dy, p.n, self, i, first, tokens);
  return p.z.data == nullptr ? dy : dy * math::silu(F::of_row(p.z, p.n, self, i, first, tokens));
}

// Number q of the tile, forward: keeps S_{t-1}, moves S on, and dC.
template <int K>
__device__ void forward_token(Shared<K>& s, const Self<K>& self, int q, State<K>& S) {
  constexpr int R = Cut<K>::warp_rows, n = Cut<K>::piece;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int k = 0; k < K; k += n) {
      Floats<n> piece;
#pragma unroll
      for (int j = 0; j < n; ++j) piece.v[j] = S[r][k + j];
      s.before[q][r][k / n][threadIdx.x] = piece;
    }
  float B[K], input[R], dC[K] = {};
  load_columns(s.now.BC[0][q], self, B);
#pragma unroll
  for (int r = 0; r < R; ++r) input[r] = s.now.delta[q] * s.now.x[q][self.row + r];
  advance<K>(S, s.now.decay[q], input, B);
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int k = 0; k < K; ++k) dC[k] += S[r][k] * s.dy[q][self.row + r];
  store_columns(s.parts[1][self.warp][q], self, dC);
}

// And back: dB, dx, u·x and da; G becomes what this token says about the state before it. Adds dy x to dD.
template <int K>
__device__ void backward_token(Shared<K>& s, const Self<K>& self, int q, float D, State<K>& G, float& dD) {
  constexpr int R = Cut<K>::warp_rows, n = Cut<K>::piece, m = R <= 2 ? 4 : 8;
  float B[K], C[K], dB[K] = {}, v[m] = {};  // v: u of the rows, u·x, <G, S_{t-1}>
  load_columns(s.now.BC[0][q], self, B);
  load_columns(s.now.BC[1][q], self, C);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float x = s.now.x[q][self.row + r], dy = s.dy[q][self.row + r];
#pragma unroll
    for (int k = 0; k < K; k += n) {
      const Floats<n> before = s.before[q][r][k / n][threadIdx.x];
#pragma unroll
      for (int j = 0; j < n; ++j) {
        float& g = G[r][k + j];
        g += dy * C[k + j];
        dB[k + j] += x * g;
        v[r] += g * B[k + j];
        v[R + 1] += g * before.v[j];
      }
    }
  }
  const float delta = s.now.delta[q], decay = s.now.decay[q];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    v[R] += dB[k] * B[k];
    dB[k] *= delta;
  }
  store_columns(s.parts[0][self.warp][q], self, dB);
  const float sum = scattered_sum(v);
  if (self.lane < R) {
    const int row = self.row + self.lane;
    const float dy = s.dy[q][row];
    s.dx[q][row] = delta * sum + D * dy;
    dD += dy * s.now.x[q][row];
  } else if (self.lane == R) {
    s.sums[0][q][self.warp] = sum;
  } else if (self.lane == R + 1) {
    s.sums[1][q][self.warp] = decay == 0 ? 0.0f : decay * sum;
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int k = 0; k < K; ++k) G[r][k] = decay == 0 ? 0.0f : decay * G[r][k];
}

// The block's sums of a tile to global memory.
template <class T, int K>
__device__ void write_tile(const WalkBack<T>& p, const Shared<K>& s, const Self<K>& self, int64_t t0, int tokens) {
  constexpr int columns = Cut<K>::columns;
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t length = p.end - p.begin, block = blockIdx.x % p.n.blocks;
#pragma unroll
  for (int j = 0; j < 2 * tile * columns / threads; ++j) {
    const int i = tid + j * threads, which = i / (tile * columns), q = i / columns % tile, column = i % columns;
    if (q >= tokens || column >= p.n.state) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += s.parts[which][w][q][column];
    const int64_t token = (which * p.n.batch + self.b) * length + t0 - p.begin + q;
    p.parts[((token * p.n.heads + self.h) * p.n.blocks + block) * p.n.state + column] = sum;
  }
  const int q = tid / Cut<K>::rows, r = tid % Cut<K>::rows;
  if (q < tokens && self.block_row + r < p.n.width)
    *p.dx.at(self.b * p.n.time + t0 + q, self.h * p.n.width + self.block_row + r) = element<T>(s.dx[q][r]);
  if (tid < 2 * tile && tid % tile < tokens) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += s.sums[tid / tile][tid % tile][w];
    p.sums[(int64_t{tid / tile} * gridDim.x + blockIdx.x) * p.n.time + t0 + tid % tile] = sum;
  }
}

template <class T, int K>
__global__ void __launch_bounds__(threads) walk_back(WalkBack<T> p) {
  extern __shared__ float4 memory[];
  auto& s = *reinterpret_cast<Shared<K>*>(memory);
  constexpr int R = Cut<K>::warp_rows;
  const Self<K> self(p.n);
  const int64_t row = self.block_row + self.row + self.lane % R;
  const float D = skip_of(p.D, p.per_channel, p.n, self.h, row);
  State<K> S, G;
  if (p.end == p.n.time) load_state(p.dfinal, p.n, self, G);
  else load_kept(p.carry, 0, self, G);
  float dD = 0;
  const int64_t tiles = (p.end - p.begin + tile - 1) / tile;
  Fetched<K, tile> next;
  next.fetch(p, self, p.begin + (tiles - 1) * tile, p.end);
  float next_dy = fetch_dy(p, self, p.begin + (tiles - 1) * tile);
  load_kept(p.states, tiles - 1, self, S);
  for (int64_t i = tiles - 1; i >= 0; --i) {
    const int64_t t0 = p.begin + i * tile;
    const int tokens = static_cast<int>(min(int64_t{tile}, p.end - t0));
    next.put(s.now);
    if (threadIdx.x < tile * Cut<K>::rows) (&s.dy[0][0])[threadIdx.x] = next_dy;
    __syncthreads();
    if (i > 0) {
      next.fetch(p, self, t0 - tile, p.end);
      next_dy = fetch_dy(p, self, t0 - tile);
    }
    for (int q = 0; q < tokens; ++q) forward_token(s, self, q, S);
    if (i > 0) load_kept(p.states, i - 1, self, S);
    for (int q = tokens - 1; q >= 0; --q) backward_token(s, self, q, D, G, dD);
    __syncthreads();  // the tile has been read, its sums are there; those are written again only after the next barrier
    write_tile(p, s, self, t0, tokens);
  }
  if (p.dD != nullptr && self.lane < R && row < p.n.width) {
    float& to = p.dD[(self.b * p.n.heads + self.h) * p.n.width + row];
    to = p.end == p.n.time ? dD : to + dD;
  }
  if (p.begin > 0) store_kept(p.carry, 0, self, G);
  else if (p.dinitial != nullptr) store_state(p.dinitial, p.n, self, G);
}

// dB and dC of a segment: the parts of the group's heads and their blocks, in order.
template <class T>
__global__ void sum_heads(Extent n, const float* parts, int64_t begin, int64_t length, Tokens<T> dB, Tokens<T> dC) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, of_token = n.groups * n.state;
  if (i >= n.batch * length * of_token) return;
  const int64_t token = i / of_token, g = i % of_token / n.state, column = i % n.state;
  const int64_t of_group = n.heads / n.groups * n.blocks;
  const int64_t at = (blockIdx.y * n.batch * length + token) * n.heads * n.blocks + g * of_group;
  const float* from = parts + at * n.state + column;
  float sum = 0;
#pragma unroll 8
  for (int64_t k = 0; k < of_group; ++k) sum += from[k * n.state];
  const int64_t to = token / length * n.time + begin + token % length;
  *(blockIdx.y == 0 ? dB : dC).at(to, g * n.state + column) = element<T>(sum);
}

// ddt of one (batch row, head) by one block, and its part of dA_log and ddt_bias [batch, head].
template <class T>
__global__ void time_step_gradient(Extent n, TimeStep step, const float* sums, const float* delta, const T* dt,
                                   int64_t stride, const float* A_log, const float* bias, T* ddt, int64_t stride_to,
                                   double* dA_log, double* dbias) {
  const int64_t b = blockIdx.x / n.heads, h = blockIdx.x % n.heads;
  const float A = -expf(A_log[h]);
  double totals[2] = {0, 0};
  for (int64_t t = threadIdx.x; t < n.time; t += blockDim.x) {
    float ux = 0, da = 0;
    for (int64_t k = 0; k < n.blocks; ++k) {
      const float* from = sums + (blockIdx.x * n.blocks + k) * n.time + t;
      ux += from[0];
      da += from[n.all_blocks() * n.time];
    }
    const float d = delta[blockIdx.x * n.time + t];
    const float raw = value(dt[(b * n.time + t) * stride + h]) + (bias != nullptr ? bias[h] : 0.0f);
    const bool cut = d * A < least_a;
    const float gradient = step.gradient(raw, cut ? ux : ux + A * da);
    ddt[(b * n.time + t) * stride_to + h] = element<T>(gradient);
    totals[0] += cut ? 0.0 : static_cast<double>(d) * A * da;
    totals[1] += gradient;
  }
  block_sum(totals);
  if (threadIdx.x != 0) return;
  dA_log[blockIdx.x] = totals[0];
  dbias[blockIdx.x] = totals[1];
}

// to[o] = Σ over batch and inner of from [batch, out, inner]: one warp each.
template <class F>
__global__ void sum_batch(const F* from, int64_t batch, int64_t outputs, int64_t inner, float* to) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < batch * inner; i += 32)
    sum += static_cast<double>(from[(i / inner * outputs + blockIdx.x) * inner + i % inner]);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) to[blockIdx.x] = static_cast<float>(sum);
}

// dz = dy y silu'(z)
template <class T>
__global__ void gate_gradient(Elements<T> dy, Elements<float> y, Elements<T> z, Elements<T> dz) {
  constexpr int n = Elements<T>::n;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * n, end = dy.count();
  if (i >= end) return;
  float d[n], gate[n], ungated[4];
  dy.load(i, end, d);
  z.load(i, end, gate);
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (j % 4 == 0) y.load(i + j, end, ungated);
    d[j] *= ungated[j % 4] * math::silu_gradient(gate[j]);
  }
  dz.store(i, end, d);
}

// Tokens of a segment.
int64_t segment_of(const Ssd& op, const Extent& n) {
  const int64_t time = (n.time + whole - 1) / whole * whole;
  const int64_t a_token = kept_size(op) * 4 / tile + 2 * n.batch * n.heads * n.blocks * n.state * 4;
  const int64_t length = op.chunk > 0 ? op.chunk + whole - 1 : scratch / a_token;
  return std::clamp(length / whole * whole, whole, time);
}

Tensor floats(int64_t count) { return Tensor({count}, DType::f32, Device::cuda); }
float* pointer(const Tensor& t) { return t ? t.data<float>() : nullptr; }

template <class T, int K>
void run(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to) {
  const Extent n(op, Cut<K>::rows);
  const int64_t length = segment_of(op, n), segments = (n.time + length - 1) / length, kept = kept_size(op);
  const TimeSteps steps = time_steps(on, op);
  const Tensor entering = segments > 1 ? floats(segments * kept) : Tensor();
  const Tensor carry = segments > 1 ? floats(kept) : Tensor();
  if (entering)
    keep_states(on, op, steps, {.begin = 0, .end = (segments - 1) * length + 1, .every = length, .start = nullptr,
                                .states = entering.data<float>()});
  const Tensor states = floats(length / tile * kept);
  const Tensor parts = floats(2 * n.batch * length * n.heads * n.blocks * n.state);
  const Tensor sums = floats(2 * n.all_blocks() * n.time), dD = to.D ? floats(n.batch * n.heads * n.width) : Tensor();
  for (int64_t i = segments - 1; i >= 0; --i) {
    const int64_t begin = i * length, end = std::min(n.time, begin + length);
    const float* start = entering ? pointer(entering) + i * kept : nullptr;
    keep_states(on, op, steps, {.begin = begin, .end = end, .every = tile, .start = start, .states = pointer(states)});
    const WalkBack<T> p{.n = n, .x = Tokens<T>(op.x), .B = Tokens<T>(op.B), .C = Tokens<T>(op.C), .dy = Tokens<T>(dy),
                        .z = Tokens<T>(op.z), .dx = Tokens<T>(to.x), .delta = pointer(steps.delta),
                        .decay = pointer(steps.decay), .D = pointer(op.D), .dfinal = pointer(dfinal),
                        .per_channel = op.D && op.D.rank() == 2, .states = pointer(states), .carry = pointer(carry),
                        .dinitial = pointer(to.initial_state), .parts = pointer(parts), .sums = pointer(sums),
                        .dD = pointer(dD), .begin = begin, .end = end};
    launch(walk_back<T, K>, blocks(n.all_blocks(), 1), threads, sizeof(Shared<K>), on, p);
    launch(sum_heads<T>, dim3(blocks(n.batch * (end - begin) * n.groups * n.state, 256), 2), 256, 0, on, n,
           pointer(parts), begin, end - begin, Tokens<T>(to.B), Tokens<T>(to.C));
  }
  const Tensor by_row({2, n.batch, n.heads}, DType::f64, Device::cuda);
  double *dA = by_row.data<double>(), *dbias = dA + n.batch * n.heads;
  launch(time_step_gradient<T>, blocks(n.batch * n.heads, 1), 256, 0, on, n, TimeStep(op), pointer(sums),
         pointer(steps.delta), op.dt.data<T>(), op.dt.stride(n.heads), pointer(op.A_log), pointer(op.dt_bias),
         to.dt.data<T>(), to.dt.stride(n.heads), dA, dbias);
  const auto sum = [&]<class F>(const F* from, int64_t inner, const Tensor& result) {
    launch(sum_batch<F>, blocks(result.count(), 1), 32, 0, on, from, n.batch, result.count(), inner, pointer(result));
  };
  sum(dA, 1, to.A_log);
  if (to.dt_bias) sum(dbias, 1, to.dt_bias);
  if (to.D) sum(pointer(dD), n.heads * n.width / to.D.count(), to.D);
}

}  // namespace

void recurrent_backward(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to) {
  with_gpu_float("Ssd", op.x.dtype(), [&]<class T>(T) {
    if (to.z)
      launch(gate_gradient<T>, blocks(dy.count(), 256 * Elements<T>::n), 256, 0, on, Elements<T>(dy),
             Elements<float>(op.ungated), Elements<T>(op.z), Elements<T>(to.z));
    with_columns(op.B.size(3), [&](auto K) { run<T, K()>(on, op, dy, dfinal, to); });
  });
}

}  // namespace adder::ssd
