// Forward and the decoding step.
// Floor, N = batch x time x channels, bf16: 4 N bytes (x in, y out) at memory speed; walkers read width - 1 of 64
// tokens twice. Instructions come second: some 15 an element at width 4, half of what the memory's time allows. A step
// moves width rows in and width out. Plain kernels read every input width times, out of cache.
#include "adder/kernels/causal_conv1d_walker.cuh"

#include "adder/core/launch.cuh"

namespace adder {
namespace {

using namespace conv;
constexpr int threads = 256;
constexpr int blocks_at_once = 4;  // of walkers on a processor: what the registers allow

template <class T, int width, bool with_silu>
__global__ void __launch_bounds__(32 * warps, blocks_at_once) walk(Operands<T> p, int64_t tiles, Rows<T> y) {
  constexpr int n = per_piece<T>;
  __shared__ Lanes<T> waiting[warps][depth][32];
  Walker<T, n, width> at(p, tiles);
  if (at.count == 0) return;
  const int64_t row = at.b * p.time + at.begin;
  const Stream<T, n> x{&waiting[threadIdx.y][0][threadIdx.x], p.x(row, at.c), static_cast<int>(p.x.stride), at.count};
#pragma unroll
  for (int t = 0; t < ahead; t += group) {
    x.ask(t);
    mma::commit_copies();
  }
  const Taps<n, width> w(p, at.c);
  at.look_back(p);
  T* const to = y(row, at.c);
  const int stride = static_cast<int>(y.stride);
  auto next = at.documents(p, 0);
  unsigned documents = 0;
  for (int t = 0; t < at.count; t += group, documents >>= group) {
    x.ask(t + ahead);
    mma::commit_copies();
    if (t % 32 == 0) {
      documents = at.begins(next);
      next = at.documents(p, t + 32);
    }
    wait_for_group();
    const Lanes<T>* const pieces = x(t);
    const auto token = [&](int i) {
      const Lanes<T> piece = pieces[i * 32];
      float now[n], s[n];
#pragma unroll
      for (int j = 0; j < n; ++j) now[j] = piece[j];
      at.sum(w, now, s);
      if constexpr (with_silu)
#pragma unroll
        for (int j = 0; j < n; ++j) s[j] = silu<T>(s[j]);
      write(to + (t + i) * stride, s, at.inside);
      at.pass(now);
    };
    if (t + group <= at.count && documents % (1 << group) == 0) {
#pragma unroll
      for (int i = 0; i < group; ++i) token(i);
    } else {
#pragma unroll 1
      for (int i = 0; i < min(group, at.count - t); ++i) {
        if (documents >> i & 1) at.forget();
        token(i);
      }
    }
  }
  mma::wait_for_copies();
}

template <class T>
__global__ void plain(Operands<T> p, Rows<T> y) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % p.channels, row = i / p.channels;
  if (row >= p.batch * p.time) return;
  const float s = p.sum(row / p.time, row % p.time, c);
  *y(row, c) = element<T>(p.silu ? silu<T>(s) : s);
}

template <class T>
__global__ void last_inputs(Operands<T> p, Rows<T> final_state) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % p.channels, row = i / p.channels;
  const int64_t past = p.width - 1, b = row / past, t = p.time - past + row % past;
  if (b >= p.batch) return;
  *final_state(row, c) = t < p.final_begin(b) ? element<T>(0.0f) : *p.input(b, t, c);
}

template <class T>
struct Step {
  Rows<const T> x;
  Rows<T> state, y;
  Rows<const float> weight;
  const float* bias;
  int64_t batch, channels, width;
  bool silu;
};

// A thread owns its channel's state: it reads all of it before it moves it on. At most four taps are all asked for
// before the first is waited for.
template <class T, bool few_taps>
__global__ void __launch_bounds__(threads) step(Step<T> p) {
  constexpr int most = 4;
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % p.channels, b = i / p.channels;
  let_next_start();
  wait_for_previous();
  if (b >= p.batch) return;
  const int64_t past = p.width - 1;
  const T x = *p.x(b, c);
  float s = p.bias ? p.bias[c] : 0.0f;
  if constexpr (few_taps) {
    float taps[most];  // the newest first, as what they count
    T before[most] = {x};
#pragma unroll
    for (int k = 0; k < most; ++k) {
      if (k > past) break;
      taps[k] = *p.weight(c, past - k);
      if (k > 0) before[k] = *p.state(b * past + past - k, c);
    }
#pragma unroll
    for (int k = 0; k < most; ++k) {
      if (k > past) break;
      s = fmaf(taps[k], value(before[k]), s);
      if (k > 0) *p.state(b * past + past - k, c) = before[k - 1];
    }
  } else {
    for (int64_t k = 0; k <= past; ++k)
      s = fmaf(*p.weight(c, past - k), value(k == 0 ? x : *p.state(b * past + past - k, c)), s);
    for (int64_t k = 0; k < past; ++k)
      *p.state(b * past + k, c) = k + 1 < past ? *p.state(b * past + k + 1, c) : x;
  }
  *p.y(b, c) = element<T>(p.silu ? silu<T>(s) : s);
}

}  // namespace

void causal_conv1d_forward(Cuda on, const CausalConv1d& conv, const Tensor& y, const Tensor& final_state) {
  with_gpu_float("CausalConv1d", conv.x.dtype(), [&]<class T>(T) {
    const Operands<T> p(conv);
    const Rows<T> to(y);
    if (p.can_walk() && to.whole()) {
      const int64_t across = (p.channels + columns<per_piece<T>> - 1) / columns<per_piece<T>>;
      const int64_t rows = (p.batch * p.tiles() + warps - 1) / warps;
      with_shape(p.width, p.silu, [&](auto width, auto with_silu) {
        launch(walk<T, width(), with_silu()>, blocks(rows * across, 1), dim3(32, warps), 0, on, p, p.tiles(), to);
      });
    } else {
      launch(plain<T>, blocks(y.count(), threads), threads, 0, on, p, to);
    }
    if (final_state)
      launch(last_inputs<T>, blocks(final_state.count(), threads), threads, 0, on, p, Rows<T>(final_state));
  });
}

void causal_conv1d_step(Cuda on, const CausalConv1dStep& op, const Tensor& y) {
  with_gpu_float("CausalConv1d", op.x.dtype(), [&]<class T>(T) {
    const Step<T> p{.x = Rows<const T>(op.x), .state = Rows<T>(op.state), .y = Rows<T>(y),
                    .weight = Rows<const float>(op.weight), .bias = op.bias ? op.bias.data<float>() : nullptr,
                    .batch = op.x.size(0), .channels = op.x.size(1), .width = op.weight.size(1), .silu = op.silu};
    launch_early(p.width <= 4 ? step<T, true> : step<T, false>, blocks(y.count(), threads), threads, 0, on, p);
  });
}

}  // namespace adder
