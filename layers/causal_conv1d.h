// CausalConv1d: every channel sees its last few tokens.
#pragma once

#include "adder/autograd/params.h"
#include "adder/autograd/tape.h"
#include "adder/kernels/causal_conv1d.h"

#include <cmath>
#include <utility>
#include <vector>

namespace adder::layers {

struct CausalConv1d {
  Tensor weight;  // [channel, width]
  Tensor bias;    // [channel], optional

  /// The channels come in named parts, each cut over ranks in its own way. Initial values uniform in ±1/sqrt(width).
  struct Part {
    std::string name;
    int64_t channels;
    int64_t replicas = 1;
  };
  CausalConv1d(Params p, const std::vector<Part>& parts, int64_t width, bool with_bias = true) {
    const double bound = 1 / std::sqrt(static_cast<double>(width));
    const auto packed = [&](bool decay) {
      std::vector<Params::Part> list;
      for (const Part& part : parts)
        list.push_back({part.name, part.channels, init::uniform(-bound, bound),
                        {.decay = decay, .shard_axis = 0, .replicas = part.replicas}});
      return list;
    };
    weight = p.create_packed("weight", width, packed(true));
    if (with_bias) bias = p.create_packed("bias", 0, packed(false));
  }
  int64_t channels() const { return weight.size(0); }
  int64_t width() const { return weight.size(1); }

  /// silu(conv(x)): [batch, time, channel] -> the same.
  Tensor operator()(const Tensor& x, const Tensor& document = {}) const {
    return apply(adder::CausalConv1d{.x = x, .weight = weight, .bias = bias, .document = document})[0];
  }
  /// The same, going on from a state [batch, width - 1, channel] (undefined: nothing came before), which is moved on.
  Tensor operator()(const Tensor& x, Tensor& state, const Tensor& document) const {
    auto [y, last] = apply(adder::CausalConv1d{.x = x, .weight = weight, .bias = bias, .initial_state = state,
                                               .document = document, .final_state = true});
    state = std::move(last);
    return y;
  }
  /// One token: [batch, channel] -> the same; the state is moved on in place. No gradient.
  Tensor step(const Tensor& x, const Tensor& state) const {
    return causal_conv1d_step({.x = x, .state = state, .weight = weight.detach(), .bias = bias.detach()});
  }
};

}  // namespace adder::layers
