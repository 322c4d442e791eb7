// GatedMlp: y silu(gate) between two linear maps (SwiGLU; Shazeer 2020).
#pragma once

#include "adder/kernels/elementwise.h"
#include "adder/kernels/view.h"
#include "adder/layers/linear.h"

namespace adder::layers {

struct GatedMlp {
  Linear in;   // to y and gate, packed
  Linear out;
  int64_t hidden;

  /// hidden 0: 8/3 of the channels, rounded up to 128. `out` starts scaled by out_scale.
  GatedMlp(Params p, int64_t channels, int64_t hidden_ = 0, double out_scale = 1)
      : in(p / "in", channels, 2 * size(channels, hidden_)),
        out(p / "out", size(channels, hidden_), channels, {.scale = out_scale}),
        hidden(size(channels, hidden_)) {}

  /// [..., channel] -> the same.
  Tensor operator()(const Tensor& x) const {
    const auto parts = apply(Split{.x = in(x), .sizes = {hidden, hidden}});
    return out(apply(SiluMultiply{.y = parts[0], .gate = parts[1]}));
  }

 private:
  static int64_t size(int64_t channels, int64_t hidden) {
    return hidden > 0 ? hidden : (channels * 8 / 3 + 127) / 128 * 128;
  }
};

}  // namespace adder::layers
