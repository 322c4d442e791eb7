// RmsNorm: add to the residual stream, then normalise.
#pragma once

#include "adder/autograd/params.h"
#include "adder/autograd/tape.h"
#include "adder/kernels/rms_norm.h"

namespace adder::layers {

struct RmsNorm {
  Tensor weight;  // [channel]
  double eps;

  RmsNorm(Params p, int64_t channels, double eps_ = 1e-5)
      : weight(p.create("weight", {channels}, init::constant(1), {.decay = false})), eps(eps_) {}
  /// x and, if defined, the residual stream [..., channel] -> the normalised sum, and the sum.
  std::array<Tensor, 2> operator()(const Tensor& x, const Tensor& residual = {}) const {
    return apply(adder::RmsNorm{.x = x, .residual = residual, .weight = weight, .eps = eps});
  }
};

}  // namespace adder::layers
