#include "adder/kernels/gated_rms_norm.h"

#include "adder/kernels/elements.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/vector_math.h"

#include <cmath>
#include <vector>

namespace adder {
namespace {

constexpr int64_t block = 64;  // rows whose part of dweight is summed by one thread

template <class T>
T inverse_rms(T sum_of_squares, int64_t n, double eps) {
  return 1 / std::sqrt(sum_of_squares / static_cast<T>(n) + static_cast<T>(eps));
}

// One group of one row: n channels.
template <class T>
void forward_group(int64_t n, double eps, bool norm_first, const T* y, const T* z, const T* weight, T* out) {
  T squares = 0;
  if (norm_first) {
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < n; ++j) squares += y[j] * y[j];
    const T r = inverse_rms(squares, n, eps);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = y[j] * r * weight[j] * math::silu(z[j]);
    return;
  }
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < n; ++j) {
    const T v = y[j] * math::silu(z[j]);
    out[j] = v;
    squares += v * v;
  }
  const T r = inverse_rms(squares, n, eps);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] *= r * weight[j];
}

// What backward reads and writes of one group of one row; dweight is added to.
template <class T>
struct Group {
  int64_t n;
  const T *y, *z, *weight, *dout;
  T *dy, *dz, *dweight;
  bool add_y, add_z;
  T *gate, *slope;  // scratch of n: silu(z), silu'(z)
};

// silu(z) and silu'(z) from one exponential.
template <class T>
void open_gates(int64_t n, const T* z, T* gate, T* slope) {
  constexpr T limit = math::Ieee<T>::limit;  // beyond it the sigmoid is 0 or 1
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T sigmoid = math::sigmoid(z[j]), above = z[j] < -limit ? -limit : z[j];
    const T inside = above > limit ? limit : above;
    gate[j] = above * sigmoid;
    slope[j] = sigmoid * (1 + inside * (1 - sigmoid));
  }
}

template <class T>
void backward_gate_first(const Group<T>& g, double eps) {
  const T *y = g.y, *d = g.dout, *weight = g.weight, *gate = g.gate, *slope = g.slope;
  T *dy = g.dy, *dz = g.dz, *dweight = g.dweight;
  const bool add_y = g.add_y, add_z = g.add_z;
  T squares = 0, product = 0;
#pragma omp simd reduction(+ : squares, product)
  for (int64_t j = 0; j < g.n; ++j) {
    const T v = y[j] * gate[j];
    squares += v * v;
    product += d[j] * weight[j] * v;
  }
  const T r = inverse_rms(squares, g.n, eps), c = product / static_cast<T>(g.n) * r * r;
#pragma omp simd
  for (int64_t j = 0; j < g.n; ++j) {
    const T v = y[j] * gate[j], dv = r * (d[j] * weight[j] - v * c);
    dweight[j] += d[j] * (v * r);
    put(dz[j], dv * y[j] * slope[j], add_z);
    put(dy[j], dv * gate[j], add_y);
  }
}

template <class T>
void backward_norm_first(const Group<T>& g, double eps) {
  const T *y = g.y, *dout = g.dout, *weight = g.weight, *gate = g.gate, *slope = g.slope;
  T *dy = g.dy, *dz = g.dz, *dweight = g.dweight;
  const bool add_y = g.add_y, add_z = g.add_z;
  T squares = 0, product = 0;
#pragma omp simd reduction(+ : squares, product)
  for (int64_t j = 0; j < g.n; ++j) {
    squares += y[j] * y[j];
    product += dout[j] * gate[j] * weight[j] * y[j];
  }
  const T r = inverse_rms(squares, g.n, eps), c = product / static_cast<T>(g.n) * r * r;
#pragma omp simd
  for (int64_t j = 0; j < g.n; ++j) {
    const T d = dout[j] * gate[j], normed = y[j] * r;
    dweight[j] += d * normed;
    put(dz[j], dout[j] * (normed * weight[j]) * slope[j], add_z);
    put(dy[j], r * (d * weight[j] - y[j] * c), add_y);
  }
}

}  // namespace

void gated_rms_norm_forward(Cpu, const GatedRmsNorm& op, const Tensor& out) {
  const int64_t channels = op.y.size(-1), n = channels / op.groups, count = op.y.count();
  with_float("GatedRmsNorm", out.dtype(), [&]<class T>(T) {
    const Elements<T> y(op.y, n), z(op.z, n), to(out, n);
    const T* weight = op.weight.data<T>();
#pragma omp parallel for if (count > 1 << 14)
    for (int64_t i = 0; i < count; i += n)
      forward_group(n, op.eps, op.norm_before_gate, y(i), z(i), weight + i % channels, to(i));
  });
}

void gated_rms_norm_backward(Cpu, const GatedRmsNorm& op, const Tensor& dout, const GatedRmsNormSlots& to) {
  const int64_t channels = op.y.size(-1), n = channels / op.groups, rows = op.y.count() / channels;
  const int64_t blocks = (rows + block - 1) / block;
  const Tensor partial = to.weight.tensor ? Tensor({blocks, channels}, dout.dtype(), dout.device()) : Tensor();
  with_float("GatedRmsNorm", dout.dtype(), [&]<class T>(T) {
    const Elements<T> y(op.y, n), z(op.z, n), d(dout, n), dy(to.y.tensor, n), dz(to.z.tensor, n), sums(partial, n);
    const T* weight = op.weight.data<T>();
#pragma omp parallel if (op.y.count() > 1 << 14)
    {
      std::vector<T> scratch(static_cast<size_t>(4 * n + channels));  // also for gradients that nobody asked for
      T *gate = scratch.data(), *slope = gate + n, *no_y = slope + n, *no_z = no_y + n, *no_weight = no_z + n;
#pragma omp for
      for (int64_t b = 0; b < blocks; ++b) {
        T* sum = partial ? sums(b * channels) : no_weight;
        std::fill_n(sum, channels, T{0});
        const int64_t end = std::min(rows, (b + 1) * block) * channels;
        for (int64_t i = b * block * channels; i < end; i += n) {
          const int64_t column = i % channels;
          const Group<T> group{.n = n, .y = y(i), .z = z(i), .weight = weight + column, .dout = d(i),
                               .dy = to.y.tensor ? dy(i) : no_y, .dz = to.z.tensor ? dz(i) : no_z,
                               .dweight = sum + column, .add_y = to.y.accumulate, .add_z = to.z.accumulate,
                               .gate = gate, .slope = slope};
          open_gates(n, group.z, gate, slope);
          if (op.norm_before_gate) backward_norm_first(group, op.eps);
          else backward_gate_first(group, op.eps);
        }
      }
    }
  });
  if (partial) sum_rows(Cpu{}, partial, to.weight.tensor, to.weight.accumulate);
}

Tensor GatedRmsNorm::forward() {
  check_alike("GatedRmsNorm", "y", y, "z", z);
  check(y.rank() >= 1 && y.size(-1) > 0, "GatedRmsNorm: y {} has no channels", to_string(y.shape()));
  check(groups >= 1 && y.size(-1) % groups == 0, "GatedRmsNorm: {} channels in {} groups", y.size(-1), groups);
  check(weight.defined() && weight.shape() == Shape{y.size(-1)} &&
            weight.dtype() == (y.dtype() == DType::bf16 ? DType::f32 : y.dtype()),
        "GatedRmsNorm: y {} {} but weight {}", name(y.dtype()), to_string(y.shape()),
        weight ? fmt::format("{} {}", name(weight.dtype()), to_string(weight.shape())) : "undefined");
  y = with_whole_rows(y);
  z = with_whole_rows(z);
  weight = contiguous(weight);
  Tensor out = empty_like(y);
  on(out.device(), [&](auto backend) { gated_rms_norm_forward(backend, *this, out); });
  return out;
}

void GatedRmsNorm::backward(const Tensor& dout, Grads& to) const {
  const auto slot = [&](int i) { return to.wants(i) ? to.slot(i) : Slot{}; };
  const GatedRmsNormSlots slots{.y = slot(0), .z = slot(1), .weight = slot(2)};
  on(dout.device(), [&](auto backend) { gated_rms_norm_backward(backend, *this, with_whole_rows(dout), slots); });
}

}  // namespace adder
