// Gradient check: the gradients of a function against central differences, in f64.
#pragma once

#include "adder/core/tensor.h"

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace adder {

/// What is checked: outputs of tensors as a function of inputs (an undefined output counts as zero).
using TensorFunction = std::function<std::vector<Tensor>(std::span<const Tensor> inputs)>;

struct GradientCheck {
  double error = 0;      // the largest found; see check_gradients
  std::string worst;     // "input 2, direction 5: 1.25 by backward, 1.24 by differences"
};

/// For each f64 input (others are constants) and 8 random directions v: with f projected on random output weights, and
/// an = <gradient, v>, fd = (f(x + h v) - f(x - h v)) / 2h with h = 1e-5, the error |an - fd| / max(|fd|, |an|,
/// 1e-3 ||gradient||). Should be < 1e-6 away from kinks. Backward also runs a second time into the same leaves: if the
/// gradients are not exactly added (an operator that ignores `accumulate`), the error is infinite.
GradientCheck check_gradients(const TensorFunction& f, std::vector<Tensor> inputs, uint64_t seed = 1);

/// A tensor of standard normal numbers times `scale` plus `mean`: pure function of (seed, name).
Tensor random_normal(Shape shape, uint64_t seed, double scale = 1, double mean = 0, DType type = DType::f64);

/// ||a - b|| / ||b||, in f64; infinite when anything is not finite, ||a|| where b is zero.
double relative_rms(const Tensor& a, const Tensor& b);
/// max |a - b|; infinite when anything is not finite.
double max_difference(const Tensor& a, const Tensor& b);

}  // namespace adder
