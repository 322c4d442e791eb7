// Precision check: a function in one dtype on one device against f64 on the CPU, outputs and gradients.
#pragma once

#include "adder/autograd/gradient_check.h"

namespace adder {

/// Where, and in which dtype, a function runs.
struct Place {
  Device device = Device::cpu;
  DType type = DType::f32;
};
std::string name(const Place& place);  // "cuda bf16"

struct PrecisionCheck {
  double error = 0;   // the largest found; see check_precision
  std::string worst;  // "gradient of input 2: 0.004"
};

/// Runs f and its backward, from random gradients of its outputs, at the place and in f64 on the CPU, both on inputs
/// rounded to the dtype of the place; an input given as f32 stays at least f32, i32 is passed as it is. The error is
/// the relative RMS of an output or of the gradient of an input, the worst of all. Where rounding f64's inputs and
/// outputs alone costs e0 > 5e-3, it is taken times 5e-3 / e0: bf16 should stay below 5e-3, f32 near its own rounding.
/// It is infinite if something is not finite, or if a second run gives other bits.
PrecisionCheck check_precision(const TensorFunction& f, const std::vector<Tensor>& inputs, Place place,
                               uint64_t seed = 1);

}  // namespace adder
