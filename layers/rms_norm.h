// RmsNorm: add to the residual stream, then normalise.
#pragma once

#include "adder/autograd/params.h"
#include "adder/autograd/recompute.h"
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
  /// Gives back the memory of the normalised sum until backward reads it; the sum is kept anyway.
  void forget(const Tensor& normalised, const Tensor& sum) const {
    adder::forget(normalised, [weight = weight.detach(), eps = eps, type = normalised.dtype()](const Tensor& s) {
      return rms_norm_again({.sum = s, .weight = weight, .eps = eps, .type = type});
    }, sum);
  }
};

}  // namespace adder::layers
