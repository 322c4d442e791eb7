// A block takes a row. Floor, a logit: forward 4 bytes (the row read once), backward 4 read and 2 written in bf16, 4 in
// f32, at memory speed; one exponential and some ten instructions each stay below it. Around the kernels each of the
// products moves the logits once more. A part of 512 rows is four rows a processor: all run at once, and what a
// processor waits for is 64 KB at any time.
#include "adder/kernels/cross_entropy.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/warp.cuh"

#include <cfloat>

namespace adder {
namespace {

constexpr int n = 4;                         // a thread takes n logits that lie side by side at a time
constexpr int at_once = 4;                   // rows on a processor
constexpr int64_t most_columns = 1 << 30;    // so that columns are counted in 32 bits

template <class T>
struct alignas(n * sizeof(T)) Four {
  T v[n];
};

// A matrix whose rows may lie apart. Where each row is aligned, a piece moves in one access.
template <class T>
struct Rows {
  T* data;
  int64_t pitch;
  int columns;
  bool aligned;

  explicit Rows(const Tensor& t)
      : data(t.data<T>()), pitch(t.stride(t.size(1))), columns(static_cast<int>(t.size(1))),
        aligned(reinterpret_cast<uintptr_t>(data) % sizeof(Four<T>) == 0 && pitch % n == 0) {}

  /// x[k] = columns [j + k step, j + k step + n) of row i; those from the end on are -infinity, whose exponential is 0.
  template <int pieces>
  __device__ void load(int64_t i, int j, int step, float (&x)[pieces][n]) const {
    const T* p = data + i * pitch + j;
    if (aligned && j + (pieces - 1) * step + n <= columns) {
      Four<T> four[pieces];  // all under way before the first is used
#pragma unroll
      for (int k = 0; k < pieces; ++k) four[k] = *reinterpret_cast<const Four<T>*>(p + k * step);
#pragma unroll
      for (int k = 0; k < pieces; ++k)
#pragma unroll
        for (int c = 0; c < n; ++c) x[k][c] = value(four[k].v[c]);
    } else {
#pragma unroll
      for (int k = 0; k < pieces; ++k) load(p + k * step, columns - (j + k * step), x[k]);
    }
  }
  /// The n at p, of which `left` or none are there.
  __device__ void load(const T* p, int left, float (&x)[n]) const {
    if (aligned && left >= n) {
      const Four<T> four = *reinterpret_cast<const Four<T>*>(p);
#pragma unroll
      for (int c = 0; c < n; ++c) x[c] = value(four.v[c]);
    } else {
#pragma unroll
      for (int c = 0; c < n; ++c) x[c] = c < left ? value(p[c]) : -INFINITY;
    }
  }

  /// Columns [j, min(j + n, end)) of row i = x, rounded; what is read next is long out of the cache when they are.
  __device__ void store(int64_t i, int j, const float (&x)[n]) const {
    T* p = data + i * pitch + j;
    if (aligned && j + n <= columns) {
      Four<T> four;
#pragma unroll
      for (int c = 0; c < n; ++c) four.v[c] = element<T>(x[c]);
      using Piece = std::conditional_t<sizeof(four) == 16, uint4, uint2>;
      __stcs(reinterpret_cast<Piece*>(p), *reinterpret_cast<const Piece*>(&four));
    } else {
#pragma unroll
      for (int c = 0; c < n; ++c)
        if (j + c < columns) p[c] = element<T>(x[c]);
    }
  }
};

// sum of exp(x - most) over some numbers x, most the largest of them. It starts below every finite number, so that
// -infinity adds 0 and not NaN.
struct Sum {
  float most = -FLT_MAX, sum = 0;

  __device__ void raise(float to) {
    sum *= expf(most - to);
    most = to;
  }
  __device__ void join(Sum other) {
    const float larger = fmaxf(most, other.most);
    raise(larger);
    other.raise(larger);
    sum += other.sum;
  }
};

__device__ Sum join_lanes(Sum s) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2)
    s.join({__shfl_down_sync(all_lanes, s.most, lanes), __shfl_down_sync(all_lanes, s.sum, lanes)});
  return s;
}

// The sum over a block, on its first thread.
__device__ Sum join_block(Sum s) {
  __shared__ float most[32], sum[32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  s = join_lanes(s);
  if (lane == 0) most[warp] = s.most, sum[warp] = s.sum;
  __syncthreads();
  if (warp != 0) return s;
  return join_lanes(lane < static_cast<int>(blockDim.x / 32) ? Sum{most[lane], sum[lane]} : Sum{});
}

struct Forward {
  Rows<float> logits;
  const int32_t* target;
  float *loss, *lse;
  float z_loss;
};

// exp(x) for x <= 0, within 2 ulp and |x| 2^-24 of itself.
__device__ float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}

constexpr int forward_threads = 256;

// From the last columns to the first, all rows side by side: the cache still holds those that the product wrote last,
// and then those that backward, which goes from the first to the last, reads first.
__global__ void __launch_bounds__(forward_threads, at_once) forward(Forward p) {
  constexpr int pieces = 4, step = forward_threads * n;
  const int64_t i = blockIdx.x;
  const int columns = p.logits.columns, start = static_cast<int>(threadIdx.x) * n;
  int first = start + max(columns - 1 - start, 0) / (step * pieces) * (step * pieces);
  float next[pieces][n];
  p.logits.load(i, first, step, next);
  const int32_t target = p.target[i];
  if (target < 0 || target >= columns) {  // the whole block; not counted, or wrong
    if (threadIdx.x == 0) p.loss[i] = p.lse[i] = target == not_counted ? 0.0f : NAN;
    return;
  }
  const float chosen = p.logits.data[i * p.logits.pitch + target];
  Sum s;
  for (; first >= 0; first -= step * pieces) {
    float x[pieces][n], most = s.most;
#pragma unroll
    for (int k = 0; k < pieces; ++k)
#pragma unroll
      for (int c = 0; c < n; ++c) {
        x[k][c] = next[k][c];
        most = fmaxf(most, x[k][c]);
      }
    if (first >= step * pieces) p.logits.load(i, first - step * pieces, step, next);
    s.raise(most);
#pragma unroll
    for (int k = 0; k < pieces; ++k)
      s.sum += (power(x[k][0] - most) + power(x[k][1] - most)) + (power(x[k][2] - most) + power(x[k][3] - most));
  }
  s = join_block(s);
  if (threadIdx.x != 0) return;
  const float log_sum = logf(s.sum), lse = s.most + log_sum;
  p.lse[i] = lse;
  // The large parts cancel first: of logits near 1e4 the loss keeps its digits.
  p.loss[i] = (s.most - chosen) + log_sum + p.z_loss * lse * lse;
}

template <class T>
struct Backward {
  Rows<float> logits;
  Rows<T> dlogits;
  const int32_t* target;
  const float *lse, *dloss;  // dloss, scale: null is 1
  const double* scale;
  float z_loss;
};

constexpr int backward_threads = 512;

// In place too: a thread writes only where it has read.
template <class T>
__global__ void __launch_bounds__(backward_threads) backward(Backward<T> p) {
  const int64_t i = blockIdx.x;
  const int32_t target = p.target[i];
  const bool counted = target != not_counted;  // a wrong target has an lse that is NaN
  const double dloss = p.dloss == nullptr ? 1.0 : *p.dloss, scale = p.scale == nullptr ? 1.0 : *p.scale;
  const float factor = static_cast<float>(dloss * scale);
  const float lse = p.lse[i], weight = factor * (1 + 2 * p.z_loss * lse);
  constexpr int pieces = 2, step = backward_threads * n;
  for (int first = static_cast<int>(threadIdx.x) * n; first < p.logits.columns; first += step * pieces) {
    float x[pieces][n] = {};
    if (counted) {
      p.logits.load(i, first, step, x);
#pragma unroll
      for (int k = 0; k < pieces; ++k)
#pragma unroll
        for (int c = 0; c < n; ++c)
          x[k][c] = weight * expf(x[k][c] - lse) - (first + k * step + c == target ? factor : 0.0f);
    }
#pragma unroll
    for (int k = 0; k < pieces; ++k) p.dlogits.store(i, first + k * step, x[k]);
  }
}

// One block: the sum over a fixed set of tokens for each thread, then over the threads.
__global__ void __launch_bounds__(1024) sum_all(const float* loss, const int32_t* target, int64_t tokens,
                                                const double* scale, float* to) {
  double sums[2] = {0, 0};  // losses, counted tokens
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < tokens; i += blockDim.x) {
    sums[0] += static_cast<double>(loss[i]);
    sums[1] += target[i] != not_counted;
  }
  block_sum(sums);
  if (threadIdx.x == 0) *to = sums[1] == 0 ? 0.0f : static_cast<float>(sums[0] * (scale == nullptr ? 1.0 : *scale));
}

template <class T>
const T* data_or_null(const Tensor& t) {
  return t ? t.data<T>() : nullptr;
}

}  // namespace

void cross_entropy_forward(Cuda on, const Tensor& logits, const Tensor& targets, double z_loss, const Tensor& losses,
                           const Tensor& logsumexp) {
  if (logits.size(1) > most_columns) fail("LinearCrossEntropy: a vocabulary of more than 2^30 on the GPU");
  launch(forward, blocks(logits.size(0), 1), forward_threads, 0, on,
         Forward{Rows<float>(logits), targets.data<int32_t>(), losses.data<float>(), logsumexp.data<float>(),
                 static_cast<float>(z_loss)});
}

void sum_losses(Cuda on, const Tensor& losses, const Tensor& targets, const Tensor& scale, const Tensor& to) {
  launch(sum_all, 1, 1024, 0, on, losses.data<float>(), targets.data<int32_t>(), losses.count(),
         data_or_null<double>(scale), to.data<float>());
}

void cross_entropy_backward(Cuda on, const CrossEntropyBackward& b) {
  with_gpu_float("LinearCrossEntropy", b.dlogits.dtype(), [&]<class T>(T) {
    const Backward<T> p{.logits = Rows<float>(b.logits), .dlogits = Rows<T>(b.dlogits),
                        .target = b.targets.data<int32_t>(), .lse = b.logsumexp.data<float>(),
                        .dloss = data_or_null<float>(b.dloss), .scale = data_or_null<double>(b.scale),
                        .z_loss = static_cast<float>(b.z_loss)};
    launch(backward<T>, blocks(b.logits.size(0), 1), backward_threads, 0, on, p);
  });
}

}  // namespace adder
