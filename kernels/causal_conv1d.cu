// Forward and the decoding step.
// Floor, N = batch x time x channels, bf16: 4 N bytes (x in, y out) at memory speed; walkers read width - 1 of 64
// tokens twice. A step moves width rows in and width out. Plain kernels read every input width times, out of cache.
#include "adder/kernels/causal_conv1d.cuh"

#include "adder/core/launch.cuh"
#include "adder/kernels/math.cuh"

namespace adder {
namespace {

using namespace conv;
constexpr int threads = 256;

template <class T, int width>
__global__ void __launch_bounds__(32 * lanes, 3) walk(Operands<T> p, int64_t tiles, Rows<T> y) {
  Walker<T, width> at(p, tiles);
  if (!at.inside) return;
  const Taps<width> w(p, at.c);
  const T* const from = p.x(at.b * p.time + at.begin, at.c);
  T* const to = y(at.b * p.time + at.begin, at.c);
  const int32_t* const id = p.document ? p.document(at.b, at.begin) : nullptr;
  for (int t = 0; t < at.count; t += ahead<T>) {
    Lanes<T, n> x[ahead<T>];
    int32_t document[ahead<T>];
#pragma unroll
    for (int i = 0; i < ahead<T>; ++i) {
      if (t + i >= at.count) break;
      x[i] = read(from + (t + i) * p.x.stride);
      document[i] = id ? id[t + i] : 0;
    }
#pragma unroll
    for (int i = 0; i < ahead<T>; ++i) {
      if (t + i >= at.count) break;
      const float now[n] = {x[i][0], x[i][1], x[i][2], x[i][3]};
      float s[n];
      at.enter(document[i]);
      at.sum(w, now, s);
      if (p.silu)
#pragma unroll
        for (int c = 0; c < n; ++c) s[c] = math::silu(s[c]);
      write(to + (t + i) * y.stride, s);
      at.pass(now);
    }
  }
}

template <class T>
__global__ void plain(Operands<T> p, Rows<T> y) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % p.channels, row = i / p.channels;
  if (row >= p.batch * p.time) return;
  const float s = p.sum(row / p.time, row % p.time, c);
  *y(row, c) = element<T>(p.silu ? math::silu(s) : s);
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

// A thread owns its channel's state: it reads all of it before it moves it on.
template <class T>
__global__ void step(Step<T> p) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x, c = i % p.channels, b = i / p.channels;
  if (b >= p.batch) return;
  const int64_t past = p.width - 1;
  const T x = *p.x(b, c);
  float s = p.bias ? p.bias[c] : 0.0f;
  for (int64_t k = 0; k <= past; ++k)
    s = fmaf(*p.weight(c, past - k), value(k == 0 ? x : *p.state(b * past + past - k, c)), s);
  *p.y(b, c) = element<T>(p.silu ? math::silu(s) : s);
  for (int64_t k = 0; k < past; ++k)
    *p.state(b * past + k, c) = k + 1 < past ? *p.state(b * past + k + 1, c) : x;
}

}  // namespace

void causal_conv1d_forward(Cuda on, const CausalConv1d& conv, const Tensor& y, const Tensor& final_state) {
  with_gpu_float("CausalConv1d", conv.x.dtype(), [&]<class T>(T) {
    const Operands<T> p(conv);
    const Rows<T> to(y);
    if (p.can_walk() && to.whole()) {
      const int64_t across = (p.channels + columns - 1) / columns, rows = (p.batch * p.tiles() + lanes - 1) / lanes;
      with_width(p.width, [&](auto width) {
        launch(walk<T, width()>, blocks(rows * across, 1), dim3(32, lanes), 0, on, p, p.tiles(), to);
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
    launch(step<T>, blocks(y.count(), threads), threads, 0, on, p);
  });
}

}  // namespace adder
