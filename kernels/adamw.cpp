#include "adder/kernels/adamw.h"

#include "adder/core/bf16.h"
#include "adder/core/error.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace adder {
namespace {

using Controls = AdamWControls;

// Sum of squares of one block, in lanes that a vector register holds.
template <class T>
double squares_of(const T* x, int64_t n) {
  constexpr int64_t lanes = 16;
  double sum[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int64_t l = 0; l < lanes; ++l) sum[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
  for (int64_t l = 0; i < n; ++i, ++l) sum[l] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (int64_t half = lanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

void require(const Tensor& t, const char* what, const Tensor& parameter, DType type) {
  check(t.dtype() == type && t.shape() == parameter.shape() && t.contiguous(),
        "AdamW: parameter {} {} but {} {} {}, all must be contiguous", name(parameter.dtype()),
        to_string(parameter.shape()), what, name(t.dtype()), to_string(t.shape()));
}

// The numbers of one update, rounded once.
template <class T>
struct Step {
  T clip, beta1, beta2, rest1, rest2;  // rest: 1 - beta
  T rate, inverse_root, epsilon;       // α / (1 - β1ᵗ), 1 / sqrt(1 - β2ᵗ), ε
  T decay;                             // α λ
};

AdamWRange range_of(const AdamWUpdate& u, int64_t i) {
  const double* r = u.ranges.data<double>() + i * u.ranges.size(1);
  return {static_cast<int64_t>(r[0]), static_cast<int64_t>(r[1]), r[2], r[3]};
}

template <class T>
Step<T> step_of(const AdamWUpdate& u, const AdamWRange& range) {
  const double* c = u.controls.data<double>();
  const double rate = range.lr_scale * c[Controls::learning_rate], t = c[Controls::applied];
  return {.clip = static_cast<T>(c[Controls::clip_factor]),
          .beta1 = static_cast<T>(u.beta1),
          .beta2 = static_cast<T>(u.beta2),
          .rest1 = static_cast<T>(1 - u.beta1),
          .rest2 = static_cast<T>(1 - u.beta2),
          .rate = static_cast<T>(rate / (1 - std::pow(u.beta1, t))),
          .inverse_root = static_cast<T>(1 / std::sqrt(1 - std::pow(u.beta2, t))),
          .epsilon = static_cast<T>(u.epsilon),
          .decay = static_cast<T>(rate * range.weight_decay)};
}

template <class T>
void update(const Step<T>& s, int64_t n, T* __restrict p, const T* __restrict gradient, T* __restrict m,
            T* __restrict v) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = s.clip * gradient[i];
    m[i] = s.beta1 * m[i] + s.rest1 * g;
    v[i] = s.beta2 * v[i] + s.rest2 * g * g;
    // The parameter is rounded once: 1 - α λ as a float would be wrong by a part in a thousand of α λ.
    p[i] -= s.rate * m[i] / (std::sqrt(v[i]) * s.inverse_root + s.epsilon) + s.decay * p[i];
  }
}

template <class T>
void update_range(const AdamWUpdate& u, const AdamWRange& range) {
  constexpr int64_t block = 1 << 12;  // of the five arrays, a block fits in the L2 cache
  const Step<T> step = step_of<T>(u, range);
  T *p = u.parameter.data<T>(), *m = u.exp_avg.data<T>(), *v = u.exp_avg_sq.data<T>();
  const T* g = u.gradient.data<T>();
  bf16* rounded = u.rounded ? u.rounded.data<bf16>() : nullptr;
#pragma omp parallel for if (range.end - range.begin > block)
  for (int64_t i = range.begin; i < range.end; i += block) {
    const int64_t count = std::min(block, range.end - i);
    update(step, count, p + i, g + i, m + i, v + i);
    if (rounded != nullptr)
      for (int64_t j = i; j < i + count; ++j) rounded[j] = to_bf16(static_cast<float>(p[j]));
  }
}

}  // namespace

Tensor adamw_ranges(const std::vector<AdamWRange>& ranges, Device device) {
  std::vector<double> rows;  // positions are exact in f64: memory has fewer than 2^53 elements
  int64_t last = 0;
  for (const AdamWRange& r : ranges) {
    check(last <= r.begin && r.begin <= r.end, "AdamW: a range {}..{} after one that ends at {}", r.begin, r.end, last);
    last = r.end;
    rows.insert(rows.end(), {static_cast<double>(r.begin), static_cast<double>(r.end), r.weight_decay, r.lr_scale});
  }
  return from_host({std::ssize(ranges), 4}, rows, DType::f64, device);
}

void sum_of_squares(Cpu, std::span<const Tensor> tensors, const Tensor& to) {
  constexpr int64_t block = 1 << 14;
  double total = 0;
  for (const Tensor& t : tensors) {
    check(t.contiguous(), "sum_of_squares: rows of {} lie apart", to_string(t.shape()));
    std::vector<double> sums(static_cast<size_t>((t.count() + block - 1) / block));
    with_float("sum_of_squares", t.dtype(), [&]<class T>(T) {
      const T* x = t.data<T>();
#pragma omp parallel for if (t.count() > block)
      for (int64_t i = 0; i < t.count(); i += block)
        sums[static_cast<size_t>(i / block)] = squares_of(x + i, std::min(block, t.count() - i));
    });
    for (const double sum : sums) total += sum;
  }
  *to.data<double>() = total;
}

void adamw_controls(Cpu, const Tensor& controls) {
  check(controls.count() == Controls::size, "AdamW: {} controls, not {}", controls.count(), int64_t{Controls::size});
  double* c = controls.data<double>();
  const double norm = std::sqrt(c[Controls::squares]), most = c[Controls::max_norm];
  const bool finite = std::isfinite(norm);
  c[Controls::norm] = norm;
  c[Controls::clip_factor] = norm > most ? most / norm : 1;
  c[Controls::finite] = finite;
  c[Controls::applied] += finite;
  c[Controls::skipped] += !finite;
  c[Controls::skipped_in_a_row] = finite ? 0 : c[Controls::skipped_in_a_row] + 1;
}

void adamw_update(Cpu, const AdamWUpdate& u) {
  const DType type = u.parameter.dtype();
  require(u.parameter, "itself", u.parameter, type);
  require(u.gradient, "gradient", u.parameter, type);
  require(u.exp_avg, "exp_avg", u.parameter, type);
  require(u.exp_avg_sq, "exp_avg_sq", u.parameter, type);
  if (u.rounded) require(u.rounded, "rounded copy", u.parameter, DType::bf16);
  const int64_t ranges = u.ranges.size(0), n = u.parameter.count();
  const int64_t end = ranges > 0 ? range_of(u, ranges - 1).end : 0;
  check(end <= n, "AdamW: {} parameters, but a range that ends at {}", n, end);
  if (u.controls.data<double>()[Controls::finite] == 0) return;
  with_float("AdamW", type, [&]<class T>(T) {
    for (int64_t i = 0; i < ranges; ++i) update_range<T>(u, range_of(u, i));
  });
}

}  // namespace adder
