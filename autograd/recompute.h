// Recompute (activation checkpointing): less memory for more time, in two ways.
//
// recompute(f, x...) keeps a function's inputs instead of everything inside it, and runs it again in backward. The
// function may read parameters and other leaves; what else was recorded must be an argument. Gradients are those
// without recompute, bit for bit unless an argument has other consumers: then they add in another order.
//
// forget(y, f, x...) gives back the memory of one tensor, which can be had again as f(x...) from what the tape keeps
// anyway. Nothing is recorded twice, so gradients are always the same, bit for bit.
#pragma once

#include "adder/autograd/tape.h"

#include <array>

namespace adder {

template <class F, size_t n>
struct Recomputed {
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
  return apply(Recomputed<F, sizeof...(X)>{.f = std::move(f), .x = {x...}});
}

/// Gives the memory of y back until somebody asks for its elements, as backward does, and makes them again as f(x...):
/// the same bits. Called once all that reads y in the forward pass is queued. y must be all of its storage; x, whose
/// memory is held until then, should be what the tape holds anyway, and not y or a view of it. A tensor that is not
/// recorded is left as it is.
template <class F, class... X>
void forget(const Tensor& y, F f, const X&... x) {
  if (!y.link()) return;
  y.give_back([f = std::move(f), x = std::array{x.detach()...}] {
    NoGrad inside;
    for (const Tensor& t : x)
      if (t) t.address();  // may have been forgotten too: made again outside of f's parallel loops
    return std::apply(f, x);
  });
}

/// The same for the first output of an operator: `op` as it was applied.
template <class Op>
  requires requires(Op op) { op.inputs(), op.forward(); }
void forget(const Tensor& y, Op op) {
  if (!y.link()) return;
  detail::for_each_input(op, [](Tensor& t) { t = t.detach(); });
  y.give_back([op = std::move(op)] {
    Op again = op;
    detail::for_each_input(again, [](Tensor& t) {
      if (t) t.address();
    });
    NoGrad inside;
    auto outputs = again.forward();
    return detail::outputs_of(outputs)[0];
  });
}

}  // namespace adder
