// Floor: an update reads 16 bytes and writes 12 for each f32 element (2 more for the bf16 copy), the sum of squares
// reads 4, at memory speed. Partial sums are of fixed ranges and are added in order.
#include "adder/kernels/adamw.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/warp.cuh"

#include <algorithm>
#include <cmath>

namespace adder {
namespace {

using Controls = AdamWControls;

constexpr int threads = 256, n = 4;                  // a thread takes n elements at a time
constexpr int64_t block_of_sum = threads * n * 32;   // elements whose squares a block adds
constexpr int64_t block_of_update = threads * n * 8;  // elements that a block updates: pow() is paid for once

__global__ void __launch_bounds__(threads) squares(Elements<float> x, double* partial) {
  const int64_t begin = blockIdx.x * block_of_sum, end = min(x.count(), begin + block_of_sum);
  double sum[1] = {0};
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x * n; i < end; i += threads * n) {
    float v[n];
    x.load(i, end, v);
#pragma unroll
    for (int c = 0; c < n; ++c) sum[0] += static_cast<double>(v[c]) * static_cast<double>(v[c]);
  }
  block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
}

// One block: each thread adds a fixed set, then the threads are added.
__global__ void __launch_bounds__(1024) sum_partial(const double* partial, int64_t count, double* to) {
  double sum[1] = {0};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum[0] += partial[i];
  block_sum(sum);
  if (threadIdx.x == 0) *to = sum[0];
}

// One thread.
__global__ void set_controls(double* c) {
  const double norm = sqrt(c[Controls::squares]), most = c[Controls::max_norm];
  const bool finite = isfinite(norm);
  c[Controls::norm] = norm;
  c[Controls::clip_factor] = norm > most ? most / norm : 1;
  c[Controls::finite] = finite;
  c[Controls::applied] += finite;
  c[Controls::skipped] += !finite;
  c[Controls::skipped_in_a_row] = finite ? 0 : c[Controls::skipped_in_a_row] + 1;
}

struct Options {
  double beta1, beta2, epsilon, weight_decay, lr_scale;
};

// The numbers of one update, rounded once.
struct Step {
  float clip, beta1, beta2, rest1, rest2;  // rest: 1 - beta
  float rate, inverse_root, epsilon;       // α / (1 - β1ᵗ), 1 / sqrt(1 - β2ᵗ), ε
  float decay;                             // α λ
  bool applied;
};

__device__ Step step_of(const double* c, const Options& o) {
  const double rate = o.lr_scale * c[Controls::learning_rate], t = c[Controls::applied];
  return {.clip = static_cast<float>(c[Controls::clip_factor]),
          .beta1 = static_cast<float>(o.beta1),
          .beta2 = static_cast<float>(o.beta2),
          .rest1 = static_cast<float>(1 - o.beta1),
          .rest2 = static_cast<float>(1 - o.beta2),
          .rate = static_cast<float>(rate / (1 - pow(o.beta1, t))),
          .inverse_root = static_cast<float>(1 / sqrt(1 - pow(o.beta2, t))),
          .epsilon = static_cast<float>(o.epsilon),
          .decay = static_cast<float>(rate * o.weight_decay),
          .applied = c[Controls::finite] != 0};
}

struct Update {
  Elements<float> p, g, m, v;
  bf16* rounded;         // null: none
  bool rounded_aligned;  // to 8 bytes
  const double* controls;
  Options options;
};

struct alignas(8) FourRounded {
  bf16 v[n];
};

__device__ void store_rounded(const Update& u, int64_t i, int64_t end, const float (&x)[n]) {
  if (u.rounded_aligned && i + n <= end) {
    FourRounded four;
#pragma unroll
    for (int c = 0; c < n; ++c) four.v[c] = element<bf16>(x[c]);
    *reinterpret_cast<FourRounded*>(u.rounded + i) = four;
  } else {
#pragma unroll
    for (int c = 0; c < n; ++c)
      if (i + c < end) u.rounded[i + c] = element<bf16>(x[c]);
  }
}

__global__ void __launch_bounds__(threads) update(Update u) {
  __shared__ Step shared;
  if (threadIdx.x == 0) shared = step_of(u.controls, u.options);
  __syncthreads();
  const Step s = shared;
  if (!s.applied) return;
  const int64_t begin = blockIdx.x * block_of_update, end = min(u.p.count(), begin + block_of_update);
  for (int64_t i = begin + threadIdx.x * n; i < end; i += threads * n) {
    float p[n], g[n], m[n], v[n];
    u.p.load(i, end, p);
    u.g.load(i, end, g);
    u.m.load(i, end, m);
    u.v.load(i, end, v);
#pragma unroll
    for (int c = 0; c < n; ++c) {
      g[c] *= s.clip;
      m[c] = s.beta1 * m[c] + s.rest1 * g[c];
      v[c] = s.beta2 * v[c] + s.rest2 * g[c] * g[c];
      // The parameter is rounded once: 1 - α λ as a float would be wrong by a part in a thousand of α λ.
      p[c] -= s.rate * m[c] / (sqrtf(v[c]) * s.inverse_root + s.epsilon) + s.decay * p[c];
    }
    u.p.store(i, end, p);
    u.m.store(i, end, m);
    u.v.store(i, end, v);
    if (u.rounded != nullptr) store_rounded(u, i, end, p);
  }
}

}  // namespace

void sum_of_squares(Cuda on, std::span<const Tensor> tensors, const Tensor& to) {
  int64_t parts = 0;
  for (const Tensor& t : tensors) parts += (t.count() + block_of_sum - 1) / block_of_sum;
  const Tensor partial({parts}, DType::f64, Device::cuda);
  double* next = partial.data<double>();
  for (const Tensor& t : tensors) {
    if (!t.contiguous()) fail("sum_of_squares: rows of a tensor lie apart");
    const unsigned count = blocks(t.count(), block_of_sum);
    launch(squares, count, threads, 0, on, Elements<float>(t), next);
    next += count;
  }
  launch(sum_partial, 1, 1024, 0, on, static_cast<const double*>(partial.data<double>()), parts, to.data<double>());
}

void adamw_controls(Cuda on, const Tensor& controls) {
  if (controls.count() != Controls::size) fail("AdamW: the controls have another size");
  launch(set_controls, 1, 1, 0, on, controls.data<double>());
}

void adamw_update(Cuda on, const AdamWUpdate& u) {
  const int64_t count = u.parameter.count();
  for (const Tensor* t : {&u.parameter, &u.gradient, &u.exp_avg, &u.exp_avg_sq, &u.rounded})
    if (*t && (t->count() != count || !t->contiguous())) fail("AdamW: tensors of different sizes, or rows apart");
  bf16* const rounded = u.rounded ? u.rounded.data<bf16>() : nullptr;
  launch(update, blocks(count, block_of_update), threads, 0, on,
         Update{.p = Elements<float>(u.parameter), .g = Elements<float>(u.gradient), .m = Elements<float>(u.exp_avg),
                .v = Elements<float>(u.exp_avg_sq), .rounded = rounded,
                .rounded_aligned = reinterpret_cast<uintptr_t>(rounded) % 8 == 0, .controls = u.controls.data<double>(),
                .options = {u.beta1, u.beta2, u.epsilon, u.weight_decay, u.lr_scale}});
}

}  // namespace adder
