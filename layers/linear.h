// Linear: y = x Wᵀ + b.
#pragma once

#include "adder/autograd/params.h"
#include "adder/autograd/tape.h"
#include "adder/kernels/matmul.h"

#include <cmath>

namespace adder::layers {

struct LinearOptions {
  bool bias = false;
  Init init = {};           // empty: uniform in ±1/sqrt(in), the default of the reference implementations
  double scale = 1;         // what that bound is multiplied by
  int shard_axis = -1;      // 0: outputs are cut over ranks, 1: inputs are
};

struct Linear {
  Tensor weight;  // [out, in]
  Tensor bias;    // [out], optional

  Linear(Params p, int64_t in, int64_t out, const LinearOptions& o = {}) {
    const double bound = o.scale / std::sqrt(static_cast<double>(in));
    weight =
        p.create("weight", {out, in}, o.init ? o.init : init::uniform(-bound, bound), {.shard_axis = o.shard_axis});
    if (o.bias)
      bias = p.create("bias", {out}, init::constant(0), {.decay = false, .shard_axis = o.shard_axis == 0 ? 0 : -1});
  }
  /// [..., in] -> [..., out]
  Tensor operator()(const Tensor& x) const { return apply(Matmul{.x = x, .weight = weight, .bias = bias}); }
};

}  // namespace adder::layers
