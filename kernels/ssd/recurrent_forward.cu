// Cost, a token and head, P = width, N = state: 5 P N operations in f32; B and C from the cache once a block of rows.
#include "adder/kernels/ssd/documents.cuh"
#include "adder/kernels/ssd/recurrent.h"
#include "adder/kernels/ssd/recurrent_tile.cuh"
#include "adder/kernels/ssd/time_step.cuh"

namespace adder::ssd {
namespace {

constexpr int tile = 8;  // tokens

template <class T>
__global__ void find_time_steps(const T* dt, int64_t stride, const float* A_log, const float* bias,
                                const int32_t* document, TimeStep step, Extent n, float* delta, float* decay) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;  // of [batch, head, time]
  if (i >= n.batch * n.heads * n.time) return;
  const int64_t t = i % n.time, h = i / n.time % n.heads, token = i / n.time / n.heads * n.time + t;
  const float d = step(value(dt[token * stride + h]) + (bias != nullptr ? bias[h] : 0.0f));
  if (document != nullptr) document += token - t;
  delta[i] = d;
  decay[i] = starts_document(document, t) ? 0.0f : decay_of(d, -expf(A_log[h]));
}

// y and the final state, or the states on the way.
template <class T>
struct Walk {
  Extent n;
  Tokens<T> x, B, C, z, y;  // y may be null: only states are wanted
  Tokens<float> ungated;
  const float *delta, *decay, *D, *initial;
  bool per_channel;
  float* final_state;
  Keep keep;  // keep.start, number 0 of kept states, goes before `initial`; keep.states may be null
};

template <class T, int K>
__device__ void write_rows(const Walk<T>& p, const Self<K>& self, const float (&y)[tile][Cut<K>::rows], int64_t t0) {
  const int q = static_cast<int>(threadIdx.x) / Cut<K>::rows, r = static_cast<int>(threadIdx.x) % Cut<K>::rows;
  const int64_t row = self.block_row + r, token = self.b * p.n.time + t0 + q, at = self.h * p.n.width + row;
  if (q >= tile || t0 + q >= p.keep.end || row >= p.n.width) return;
  float value_y = y[q][r];
  if (p.z.data != nullptr) {
    *p.ungated.at(token, at) = value_y;
    value_y *= math::silu(value(*p.z.at(token, at)));
  }
  *p.y.at(token, at) = element<T>(value_y);
}

template <class T, int K>
__global__ void __launch_bounds__(threads) walk(Walk<T> p) {
  constexpr int R = Cut<K>::warp_rows;
  __shared__ Tile<K, tile> now;
  __shared__ float y[tile][Cut<K>::rows];
  const Self<K> self(p.n);
  State<K> S;
  if (p.keep.start != nullptr) load_kept(p.keep.start, 0, self, S);
  else load_state(p.initial, p.n, self, S);
  const float D = skip_of(p.D, p.per_channel, p.n, self.h, self.block_row + self.row + self.lane % R);
  int64_t until_kept = 1, kept = 0;
  Fetched<K, tile> next;
  next.fetch(p, self, p.keep.begin, p.keep.end);
  for (int64_t t0 = p.keep.begin; t0 < p.keep.end; t0 += tile) {
    next.put(now);
    __syncthreads();
    if (t0 + tile < p.keep.end) next.fetch(p, self, t0 + tile, p.keep.end);
    const int tokens = static_cast<int>(min(int64_t{tile}, p.keep.end - t0));
    for (int q = 0; q < tokens; ++q) {
      if (p.keep.states != nullptr && --until_kept == 0) {
        store_kept(p.keep.states, kept++, self, S);
        until_kept = p.keep.every;
      }
      float B[K], C[K], input[R], sums[R];
      load_columns(now.BC[0][q], self, B);
      load_columns(now.BC[1][q], self, C);
#pragma unroll
      for (int r = 0; r < R; ++r) input[r] = now.delta[q] * now.x[q][self.row + r];
      advance<K>(S, now.decay[q], input, B);
      if (p.y.data == nullptr) continue;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        sums[r] = 0;
#pragma unroll
        for (int k = 0; k < K; ++k) sums[r] += S[r][k] * C[k];
      }
      const float sum = scattered_sum(sums);
      const int row = self.row + self.lane;
      if (self.lane < R) y[q][row] = p.D == nullptr ? sum : sum + D * now.x[q][row];
    }
    __syncthreads();  // the tile has been read, y is there; y is written again only after the next barrier
    if (p.y.data != nullptr) write_rows<T, K>(p, self, y, t0);
  }
  if (p.final_state != nullptr) store_state(p.final_state, p.n, self, S);
}

void start(Cuda on, const Ssd& op, const TimeSteps& steps, const SsdResult& to, const Keep& keep,
           const Tensor& initial) {
  with_gpu_float("Ssd", op.x.dtype(), [&]<class T>(T) {
    with_columns(op.B.size(3), [&](auto K) {
      const Extent n(op, Cut<K()>::rows);
      const Walk<T> p{.n = n, .x = Tokens<T>(op.x), .B = Tokens<T>(op.B), .C = Tokens<T>(op.C), .z = Tokens<T>(op.z),
                      .y = Tokens<T>(to.y), .ungated = Tokens<float>(to.ungated), .delta = steps.delta.data<float>(),
                      .decay = steps.decay.data<float>(), .D = op.D ? op.D.data<float>() : nullptr,
                      .initial = initial ? initial.data<float>() : nullptr, .per_channel = op.D && op.D.rank() == 2,
                      .final_state = to.final_state ? to.final_state.data<float>() : nullptr, .keep = keep};
      launch(walk<T, K()>, blocks(n.all_blocks(), 1), threads, 0, on, p);
    });
  });
}

}  // namespace

TimeSteps time_steps(Cuda on, const Ssd& op) {
  const Extent n(op, 1);
  const Shape shape{n.batch, n.heads, n.time};
  const TimeSteps steps{Tensor(shape, DType::f32, Device::cuda), Tensor(shape, DType::f32, Device::cuda)};
  const float* bias = op.dt_bias ? op.dt_bias.data<float>() : nullptr;
  const int32_t* document = op.document ? op.document.data<int32_t>() : nullptr;
  with_gpu_float("Ssd", op.x.dtype(), [&]<class T>(T) {
    launch(find_time_steps<T>, blocks(shape.count(), 256), 256, 0, on, op.dt.data<T>(), op.dt.stride(n.heads),
           op.A_log.data<float>(), bias, document, TimeStep(op), n, steps.delta.data<float>(),
           steps.decay.data<float>());
  });
  return steps;
}

int64_t kept_size(const Ssd& op) {
  int64_t size = 0;
  with_columns(op.B.size(3), [&](auto K) {
    size = Extent(op, Cut<K()>::rows).all_blocks() * Cut<K()>::rows * Cut<K()>::columns;
  });
  return size;
}

void keep_states(Cuda on, const Ssd& op, const TimeSteps& steps, const Keep& keep) {
  start(on, op, steps, {}, keep, op.has_initial_state ? op.states : Tensor());
}

void recurrent_forward(Cuda on, const Ssd& op, const SsdResult& to) {
  if (op.initial_state) copy(op.initial_state, to.states);
  const Keep none{.begin = 0, .end = op.x.size(1), .every = 1, .start = nullptr, .states = nullptr};
  start(on, op, time_steps(on, op), to, none, op.initial_state);
}

}  // namespace adder::ssd
