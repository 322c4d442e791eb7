// Recompute (activation checkpointing): keep a function's inputs instead of everything inside it, and run it again in
// backward. The function may read parameters and other leaves; what else was recorded must be an argument. Gradients
// are those without recompute, bit for bit unless an argument has other consumers: then they add in another order.
#pragma once

#include "adder/autograd/tape.h"

#include <array>

namespace adder {

template <class F, size_t n>
struct Recompute {
  static constexpr bool records_always = true;  // parameters inside f want gradients even if no input does
  F f;                                          // Tensor or std::array<Tensor, m> of n tensors
  std::array<Tensor, n> x;

  std::span<Tensor> inputs() { return x; }
  auto forward() { return std::apply(f, x); }
  void backward(std::span<const Tensor> dy, Grads& to) const {
    const uint64_t oldest = next_node_number();
    std::array<Tensor, n> leaves = x;
    for (size_t i = 0; i < n; ++i)
      if (to.wants(static_cast<int>(i))) leaves[i] = leaf(x[i]);
    auto y = [&] {
      Record inside;
      return std::apply(f, leaves);
    }();
    backward_part(detail::outputs_of(y), dy, oldest);
    for (size_t i = 0; i < n; ++i)
      if (leaves[i] && leaves[i].link())
        if (Tensor g = gradient(leaves[i])) to.give(static_cast<int>(i), g);
  }
};

/// f(x...), recomputed in backward.
template <class F, class... X>
auto recompute(F f, const X&... x) {
  return apply(Recompute<F, sizeof...(X)>{.f = std::move(f), .x = {x...}});
}

}  // namespace adder
