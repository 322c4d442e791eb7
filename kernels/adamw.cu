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

// A row of adamw_ranges().
struct Range {
  double begin, end, weight_decay, lr_scale;
};

struct Update {
  float *p, *m, *v;
  const float* g;
  bf16* rounded;  // null: none
  int64_t count;
  bool aligned;   // pieces of n elements from the front are, in all of them
  const Range* ranges;
  int range_count;
  const double* controls;
  double beta1, beta2, epsilon;
};

// The numbers of one step, but for the rates in f64 rounded once.
struct Step {
  float clip, beta1, beta2, rest1, rest2;  // rest: 1 - beta
  float inverse_root, epsilon;             // 1 / sqrt(1 - β2ᵗ), ε
  double learning_rate, correction;        // correction: 1 - β1ᵗ
  bool applied;
};

__device__ Step step_of(const Update& u) {
  const double* c = u.controls;
  const double t = c[Controls::applied];
  return {.clip = static_cast<float>(c[Controls::clip_factor]),
          .beta1 = static_cast<float>(u.beta1),
          .beta2 = static_cast<float>(u.beta2),
          .rest1 = static_cast<float>(1 - u.beta1),
          .rest2 = static_cast<float>(1 - u.beta2),
          .inverse_root = static_cast<float>(1 / sqrt(1 - pow(u.beta2, t))),
          .epsilon = static_cast<float>(u.epsilon),
          .learning_rate = c[Controls::learning_rate],
          .correction = 1 - pow(u.beta1, t),
          .applied = c[Controls::finite] != 0};
}

// Those of one range.
struct Rates {
  float rate, decay;  // α / (1 - β1ᵗ), α λ
};

__device__ Rates rates_of(const Step& s, const Range& range) {
  const double rate = range.lr_scale * s.learning_rate;
  return {static_cast<float>(rate / s.correction), static_cast<float>(rate * range.weight_decay)};
}

// The first range that ends beyond element i.
__device__ int first_range(const Update& u, int64_t i) {
  int low = 0, high = u.range_count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (u.ranges[middle].end <= static_cast<double>(i)) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Elements [i, i + k): aligned, or one. What is rounded once is written out, so that the bits are the same for any k.
template <int k>
__device__ void update_piece(const Update& u, const Step& s, const Rates& r, int64_t i) {
  using Piece = Lanes<float, k>;
  const Piece before = *reinterpret_cast<const Piece*>(u.p + i), gradient = *reinterpret_cast<const Piece*>(u.g + i),
              m_before = *reinterpret_cast<const Piece*>(u.m + i), v_before = *reinterpret_cast<const Piece*>(u.v + i);
  float p[k], m[k], v[k];
#pragma unroll
  for (int c = 0; c < k; ++c) {
    const float g = s.clip * gradient[c];
    m[c] = fmaf(s.rest1, g, s.beta1 * m_before[c]);
    v[c] = fmaf(s.beta2, v_before[c], s.rest2 * g * g);
    // The parameter is rounded once: 1 - α λ as a float would be wrong by a part in a thousand of α λ.
    p[c] = before[c] - fmaf(r.decay, before[c], r.rate * m[c] / fmaf(s.inverse_root, sqrtf(v[c]), s.epsilon));
  }
  *reinterpret_cast<Piece*>(u.p + i) = Piece::of(p);
  *reinterpret_cast<Piece*>(u.m + i) = Piece::of(m);
  *reinterpret_cast<Piece*>(u.v + i) = Piece::of(v);
  if (u.rounded == nullptr) return;
  if constexpr (k == 1) u.rounded[i] = element<bf16>(p[0]);
  else *reinterpret_cast<Lanes<bf16, k>*>(u.rounded + i) = Lanes<bf16, k>::of(p);
}

// A block has a fixed part of the memory and updates what of it lies in ranges. Pieces are counted from the part's
// front, so that whole ones are aligned wherever ranges begin; one that a range has only in part goes one by one.
// Five blocks fit on a multiprocessor; what that spills is spilled once a range.
__global__ void __launch_bounds__(threads, 5) update(Update u) {
  __shared__ Step shared;
  if (threadIdx.x == 0) shared = step_of(u);
  __syncthreads();
  const Step s = shared;
  if (!s.applied) return;
  const int64_t front = blockIdx.x * block_of_update, back = min(u.count, front + block_of_update);
  for (int k = first_range(u, front); k < u.range_count; ++k) {
    const Range range = u.ranges[k];
    if (static_cast<int64_t>(range.begin) >= back) return;
    const int begin = static_cast<int>(max(static_cast<int64_t>(range.begin), front) - front);
    const int end = static_cast<int>(min(static_cast<int64_t>(range.end), back) - front);
    const Rates rates = rates_of(shared, range);
    for (int i = begin / n * n + static_cast<int>(threadIdx.x) * n; i < end; i += threads * n)
      if (u.aligned && begin <= i && i + n <= end) update_piece<n>(u, s, rates, front + i);
      else
#pragma unroll 1
        for (int j = max(begin, i); j < min(end, i + n); ++j) update_piece<1>(u, s, rates, front + j);
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
  bool aligned = true;
  for (const Tensor* t : {&u.parameter, &u.gradient, &u.exp_avg, &u.exp_avg_sq, &u.rounded}) {
    if (!*t) continue;
    if (t->count() != count || !t->contiguous()) fail("AdamW: tensors of different sizes, or rows apart");
    const auto piece = static_cast<uintptr_t>(n * size_of(t->dtype()));
    aligned = aligned && reinterpret_cast<uintptr_t>(t->address()) % piece == 0;
  }
  launch(update, blocks(count, block_of_update), threads, 0, on,
         Update{.p = u.parameter.data<float>(), .m = u.exp_avg.data<float>(), .v = u.exp_avg_sq.data<float>(),
                .g = u.gradient.data<float>(), .rounded = u.rounded ? u.rounded.data<bf16>() : nullptr, .count = count,
                .aligned = aligned, .ranges = reinterpret_cast<const Range*>(u.ranges.data<double>()),
                .range_count = static_cast<int>(u.ranges.size(0)), .controls = u.controls.data<double>(),
                .beta1 = u.beta1, .beta2 = u.beta2, .epsilon = u.epsilon});
}

}  // namespace adder
