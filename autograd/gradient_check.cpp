#include "adder/autograd/gradient_check.h"

#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/core/random.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace adder {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();
constexpr double h = 1e-5;
constexpr int directions = 8;

double dot(const Tensor& a, const Tensor& b) {
  const auto x = to_host(a), y = to_host(b);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// <f(inputs), weights>
double projected(const TensorFunction& f, std::span<const Tensor> inputs, std::span<const Tensor> weights) {
  NoGrad none;
  const std::vector<Tensor> outputs = f(inputs);
  double sum = 0;
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i]) sum += dot(outputs[i], weights[i]);
  return sum;
}

Tensor moved(const Tensor& x, const Tensor& v, double by) {
  auto a = to_host(x);
  const auto b = to_host(v);
  for (size_t i = 0; i < a.size(); ++i) a[i] += by * b[i];
  return from_host(x.shape(), a, DType::f64);
}

}  // namespace

GradientCheck check_gradients(const TensorFunction& f, std::vector<Tensor> inputs, uint64_t seed) {
  std::vector<Tensor> leaves = inputs;
  for (Tensor& t : leaves)
    if (t && t.dtype() == DType::f64) t = leaf(t);
  std::vector<Tensor> weights;
  const auto run = [&] {
    const std::vector<Tensor> outputs = f(leaves);
    if (weights.empty())
      for (size_t i = 0; i < outputs.size(); ++i)
        weights.push_back(outputs[i] ? random_normal(outputs[i].shape(), seed * 1000 + i) : Tensor());
    backward(outputs, weights);
  };
  run();
  std::vector<Tensor> once;
  for (const Tensor& t : leaves) once.push_back(t.defined() && t.link() ? gradient(t) : Tensor());
  for (Tensor& g : once)
    if (g) g = clone(g);
  run();

  GradientCheck result;
  const auto note = [&](double error, const std::string& text) {
    if (!(error <= result.error)) result = {std::isnan(error) ? infinite : error, text};
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i] || inputs[i].dtype() != DType::f64) continue;
    if (!once[i]) {
      note(infinite, fmt::format("input {} got no gradient", i));
      continue;
    }
    const double norm = std::sqrt(dot(once[i], once[i]));
    const auto first = to_host(once[i]), both = to_host(gradient(leaves[i]));
    for (size_t j = 0; j < first.size(); ++j)
      if (!(std::abs(both[j] - 2 * first[j]) <= 1e-12 * (std::abs(both[j]) + norm)))  // two orders of rounding
        note(infinite, fmt::format("input {}: a second backward gave {} and not twice {}", i, both[j], first[j]));
    for (int d = 0; d < directions; ++d) {
      const Tensor v = random_normal(inputs[i].shape(), seed * 7919 + i * 101 + static_cast<uint64_t>(d));
      const double an = dot(once[i], v);
      std::vector<Tensor> at = inputs;
      at[i] = moved(inputs[i], v, h);
      const double up = projected(f, at, weights);
      at[i] = moved(inputs[i], v, -h);
      const double fd = (up - projected(f, at, weights)) / (2 * h);
      const double scale = std::max({std::abs(fd), std::abs(an), 1e-3 * norm, 1e-300});
      note(std::abs(an - fd) / scale,
           fmt::format("input {}, direction {}: {} by backward, {} by differences", i, d, an, fd));
    }
  }
  return result;
}

Tensor random_normal(Shape shape, uint64_t seed, double scale, double mean, DType type) {
  const Random random(seed, "random_normal");
  std::vector<double> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = mean + scale * random.normal(i);
  return from_host(shape, values, type);
}

double relative_rms(const Tensor& a, const Tensor& b) {
  const auto x = to_host(a), y = to_host(b);
  check(a.shape() == b.shape(), "relative_rms: {} and {}", to_string(a.shape()), to_string(b.shape()));
  double difference = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    size += y[i] * y[i];
  }
  if (!std::isfinite(difference) || !std::isfinite(size)) return infinite;
  return std::sqrt(size > 0 ? difference / size : difference);
}

double max_difference(const Tensor& a, const Tensor& b) {
  const auto x = to_host(a), y = to_host(b);
  check(a.shape() == b.shape(), "max_difference: {} and {}", to_string(a.shape()), to_string(b.shape()));
  double most = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = std::abs(x[i] - y[i]);
    if (!std::isfinite(d)) return infinite;
    most = std::max(most, d);
  }
  return most;
}

}  // namespace adder
