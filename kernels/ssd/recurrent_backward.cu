// With G_t = dL/dS_t, which holds what the tokens after t say about S_t:
//
//   G_t = dy_t C_tᵀ + e^{a_{t+1}} G_{t+1}        dC_t = S_tᵀ dy_t          dB_t = Δ_t G_tᵀ x_t
//   u_t = G_t B_t      dx_t = Δ_t u_t + D dy_t      da_t = e^{a_t} <G_t, S_{t-1}>      dΔ_t = u_t·x_t + A da_t
//
// The states are found again: a walk forward keeps one every few tokens, the walk back computes those between. da is
// a sum of products and no difference of long sums, so that it keeps its digits at any decay. To bound what is kept,
// rows of the batch go some at a time, and time is cut into segments: a first walk keeps the state that enters each.
//
// Sums: over the rows of a block in shared memory, warp by warp; over blocks and heads by sum_heads, in order; over
// time and batch in f64.
// Cost, a token and head, P = width, N = state: some 16 P N operations in f32 and 5 more with segments, 2 P N bytes
// kept and read (4 beyond 128 states), and 16 N bytes of parts of dB and dC a block of rows.
#include "adder/kernels/ssd/gate.cuh"
#include "adder/kernels/ssd/recurrent.h"
#include "adder/kernels/ssd/recurrent_tile.cuh"
#include "adder/kernels/ssd/time_step.cuh"

#include <algorithm>
#include <cmath>

namespace adder::ssd {
namespace {

template <int K>
constexpr int tile = K <= 4 ? 4 : 2;  // tokens between kept states
constexpr int64_t whole = 8;          // segments are a multiple of this many tokens
constexpr int64_t enough = 512;       // blocks that keep a GPU busy

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
  static constexpr int Q = tile<K>;
  Tile<K, Q> now;
  Floats<n> before[Q][R][K / n][threads];  // S_{t-1}, each thread its own; once it is read, dB over the first row
  float dC[warps][Q][Cut<K>::columns];
  float dy[Q][Cut<K>::rows], dx[Q][Cut<K>::rows];
  float sums[2][Q][warps];

  __device__ float dB(int warp, int q, int column) const {
    return before[q][0][column / (32 * n)][32 * warp + column / n % 32].v[column % n];
  }
};

template <class T, int K>
__device__ float fetch_dy(const WalkBack<T>& p, const Self<K>& self, int64_t t0) {
  using F = Fetched<K, tile<K>>;
  const int i = static_cast<int>(threadIdx.x), tokens = static_cast<int>(min(int64_t{tile<K>}, p.end - t0));
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
  store_columns(s.dC[self.warp][q], self, dC);
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
  for (int k = 0; k < K; k += n) {
    Floats<n> piece;
#pragma unroll
    for (int j = 0; j < n; ++j) {
      v[R] += dB[k + j] * B[k + j];
      piece.v[j] = delta * dB[k + j];
    }
    s.before[q][0][k / n][threadIdx.x] = piece;
  }
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
  constexpr int columns = Cut<K>::columns, Q = tile<K>;
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t length = p.end - p.begin, block = blockIdx.x % p.n.blocks;
  float* dC_parts = p.parts + p.n.batch * length * p.n.heads * p.n.blocks * p.n.state;
#pragma unroll 1  // registers of architecture 8.9
  for (int j = 0; j < Q * columns / threads; ++j) {
    const int i = tid + j * threads, q = i / columns, column = i % columns;
    if (q >= tokens || column >= p.n.state) continue;
    float dB = 0, dC = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) {
      dB += s.dB(w, q, column);
      dC += s.dC[w][q][column];
    }
    const int64_t token = self.b * length + t0 - p.begin + q;
    const int64_t at = ((token * p.n.heads + self.h) * p.n.blocks + block) * p.n.state + column;
    p.parts[at] = dB;
    dC_parts[at] = dC;
  }
  const int q = tid / Cut<K>::rows, r = tid % Cut<K>::rows;
  if (q < tokens && self.block_row + r < p.n.width)
    *p.dx.at(self.b * p.n.time + t0 + q, self.h * p.n.width + self.block_row + r) = element<T>(s.dx[q][r]);
  if (tid < 2 * Q && tid % Q < tokens) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += s.sums[tid / Q][tid % Q][w];
    p.sums[(int64_t{tid / Q} * gridDim.x + blockIdx.x) * p.n.time + t0 + tid % Q] = sum;
  }
}

template <class T, int K>
__global__ void __launch_bounds__(threads) walk_back(WalkBack<T> p) {
  extern __shared__ float4 memory[];
  auto& s = *reinterpret_cast<Shared<K>*>(memory);
  constexpr int R = Cut<K>::warp_rows, Q = tile<K>;
  const Self<K> self(p.n);
  const int64_t row = self.block_row + self.row + self.lane % R;
  const float D = skip_of(p.D, p.per_channel, p.n, self.h, row);
  State<K> S, G;
  if (p.end == p.n.time) load_state(p.dfinal, p.n, self, G);
  else load_kept(p.carry, 0, self, G);
  float dD = 0;
  const int64_t tiles = (p.end - p.begin + Q - 1) / Q;
  Fetched<K, Q> next;
  next.fetch(p, self, p.begin + (tiles - 1) * Q, p.end);
  float next_dy = fetch_dy(p, self, p.begin + (tiles - 1) * Q);
  load_kept(p.states, tiles - 1, self, S);
  for (int64_t i = tiles - 1; i >= 0; --i) {
    const int64_t t0 = p.begin + i * Q;
    const int tokens = static_cast<int>(min(int64_t{Q}, p.end - t0));
    next.put(s.now);
    if (threadIdx.x < Q * Cut<K>::rows) (&s.dy[0][0])[threadIdx.x] = next_dy;
    __syncthreads();
    if (i > 0) {
      next.fetch(p, self, t0 - Q, p.end);
      next_dy = fetch_dy(p, self, t0 - Q);
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

// How backward goes: so many batch rows at a time, over segments of so many tokens.
struct Plan {
  int64_t rows, length, segments;
};

template <int K>
Plan plan_of(const Ssd& op, const Extent& n, int64_t scratch) {
  const int64_t states = kept_size(op) / n.batch * 4;  // bytes of those of a batch row
  const int64_t a_token = states / tile<K> + 8 * n.heads * n.blocks * n.state;  // of a segment: states and parts
  const int64_t time = (n.time + whole - 1) / whole * whole;
  const auto segments = [&](int64_t length) { return (n.time + length - 1) / length; };
  const auto bytes = [&](int64_t length) {  // of a batch row: also the steps and sums, what enters segments, the carry
    return length * a_token + 8 * n.time * n.heads * (1 + n.blocks) + (segments(length) + 1) * states;
  };
  const auto rows = [&](int64_t length) { return std::clamp(scratch / bytes(length), int64_t{1}, n.batch); };
  // One segment saves a walk. The shortest scratch has as many bytes in the segment as in what enters segments.
  const bool one = bytes(time) <= scratch && rows(time) * n.heads * n.blocks >= std::min(enough, n.all_blocks());
  const double shortest = std::sqrt(static_cast<double>(n.time) * static_cast<double>(states) / a_token);
  const int64_t wanted = op.chunk > 0 ? op.chunk : one ? time : static_cast<int64_t>(shortest);
  const int64_t length = std::clamp((wanted + whole - 1) / whole * whole, whole, time);
  const int64_t groups = (n.batch + rows(length) - 1) / rows(length);
  return {(n.batch + groups - 1) / groups, length, segments(length)};
}

Tensor floats(int64_t count) { return Tensor({count}, DType::f32, Device::cuda); }
float* pointer(const Tensor& t) { return t ? t.data<float>() : nullptr; }

// What is kept of a group of batch rows.
struct Scratch {
  Tensor entering, carry, states, parts, sums;
};

// The sums over a batch row, [batch, head], and of D [batch, head, width] or undefined.
struct RowSums {
  Tensor dA_log, dbias, dD;
};

// All of a group of batch rows but for the sums over them.
template <class T, int K>
void walk_rows(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to, const Plan& plan,
               const Scratch& scratch, const RowSums& by_row) {
  const Extent n(op, Cut<K>::rows);
  const TimeSteps steps = time_steps(on, op);
  const Tensor& entering = scratch.entering;
  if (entering)
    keep_states(on, op, steps, {.begin = 0, .end = (plan.segments - 1) * plan.length + 1, .every = plan.length,
                                .start = nullptr, .states = pointer(entering)});
  for (int64_t i = plan.segments - 1; i >= 0; --i) {
    const int64_t begin = i * plan.length, end = std::min(n.time, begin + plan.length);
    const float* start = entering ? pointer(entering) + i * kept_size(op) : nullptr;
    keep_states(on, op, steps, {.begin = begin, .end = end, .every = tile<K>, .start = start,
                                .states = pointer(scratch.states)});
    const WalkBack<T> p{.n = n, .x = Tokens<T>(op.x), .B = Tokens<T>(op.B), .C = Tokens<T>(op.C), .dy = Tokens<T>(dy),
                        .z = Tokens<T>(op.z), .dx = Tokens<T>(to.x), .delta = pointer(steps.delta),
                        .decay = pointer(steps.decay), .D = pointer(op.D), .dfinal = pointer(dfinal),
                        .per_channel = op.D && op.D.rank() == 2, .states = pointer(scratch.states),
                        .carry = pointer(scratch.carry), .dinitial = pointer(to.initial_state),
                        .parts = pointer(scratch.parts), .sums = pointer(scratch.sums), .dD = pointer(by_row.dD),
                        .begin = begin, .end = end};
    launch(walk_back<T, K>, blocks(n.all_blocks(), 1), threads, sizeof(Shared<K>), on, p);
    launch(sum_heads<T>, dim3(blocks(n.batch * (end - begin) * n.groups * n.state, 256), 2), 256, 0, on, n,
           pointer(scratch.parts), begin, end - begin, Tokens<T>(to.B), Tokens<T>(to.C));
  }
  launch(time_step_gradient<T>, blocks(n.batch * n.heads, 1), 256, 0, on, n, TimeStep(op), pointer(scratch.sums),
         pointer(steps.delta), op.dt.data<T>(), op.dt.stride(n.heads), pointer(op.A_log), pointer(op.dt_bias),
         to.dt.data<T>(), to.dt.stride(n.heads), by_row.dA_log.data<double>(), by_row.dbias.data<double>());
}

// Batch rows [begin, end) alone.
Ssd rows_of(Ssd op, int64_t begin, int64_t end) {
  for (Tensor* t : {&op.x, &op.dt, &op.B, &op.C, &op.z, &op.document})
    if (*t) *t = t->slice_first(begin, end);
  if (op.has_initial_state) op.states = op.states.slice_first(begin, end);
  return op;
}
SsdGradients rows_of(SsdGradients to, int64_t begin, int64_t end) {
  for (Tensor* t : {&to.x, &to.dt, &to.B, &to.C, &to.initial_state})
    if (*t) *t = t->slice_first(begin, end);
  return to;
}
RowSums rows_of(const RowSums& sums, int64_t begin, int64_t end) {
  const auto part = [&](const Tensor& t) { return t ? t.slice_first(begin, end) : t; };
  return {part(sums.dA_log), part(sums.dbias), part(sums.dD)};
}

template <class T, int K>
void run(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to, int64_t bytes) {
  static_assert(sizeof(Shared<K>) <= 99 * 1024, "what a GPU of architecture 8.9 has");
  const Extent n(op, Cut<K>::rows);
  const Plan plan = plan_of<K>(op, n, bytes);
  const int64_t kept = kept_size(op) / n.batch * plan.rows, tokens = plan.rows * plan.length;
  const bool cut = plan.segments > 1;
  const Scratch scratch{.entering = cut ? floats(plan.segments * kept) : Tensor(),
                        .carry = cut ? floats(kept) : Tensor(),
                        .states = floats(plan.length / tile<K> * kept),
                        .parts = floats(2 * tokens * n.heads * n.blocks * n.state),
                        .sums = floats(2 * plan.rows * n.heads * n.blocks * n.time)};
  const RowSums sums{.dA_log = Tensor({n.batch, n.heads}, DType::f64, Device::cuda),
                     .dbias = Tensor({n.batch, n.heads}, DType::f64, Device::cuda),
                     .dD = to.D ? Tensor({n.batch, n.heads * n.width}, DType::f32, Device::cuda) : Tensor()};
  for (int64_t b = 0; b < n.batch; b += plan.rows) {
    const int64_t end = std::min(n.batch, b + plan.rows);
    walk_rows<T, K>(on, rows_of(op, b, end), dy.slice_first(b, end), dfinal ? dfinal.slice_first(b, end) : dfinal,
                    rows_of(to, b, end), plan, scratch, rows_of(sums, b, end));
  }
  const auto sum = [&]<class F>(const F* from, int64_t inner, const Tensor& result) {
    launch(sum_batch<F>, blocks(result.count(), 1), 32, 0, on, from, n.batch, result.count(), inner, pointer(result));
  };
  sum(sums.dA_log.data<double>(), 1, to.A_log);
  if (to.dt_bias) sum(sums.dbias.data<double>(), 1, to.dt_bias);
  if (to.D) sum(pointer(sums.dD), n.heads * n.width / to.D.count(), to.D);
}

}  // namespace

void recurrent_backward(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to,
                        int64_t scratch) {
  gate_gradient(on, op, dy, to.z);
  with_gpu_float("Ssd", op.x.dtype(), [&]<class T>(T) {
    with_columns(op.B.size(3), [&](auto K) { run<T, K()>(on, op, dy, dfinal, to, scratch); });
  });
}

}  // namespace adder::ssd
