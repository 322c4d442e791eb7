// The least that the operators of a model must do: bytes if each operand moves once, and floating point operations.
#pragma once

#include <cstdint>

namespace adder {

struct Cost {
  double bytes = 0, flops = 0;
  friend Cost operator+(const Cost& a, const Cost& b) { return {a.bytes + b.bytes, a.flops + b.flops}; }
  friend Cost operator*(double n, const Cost& c) { return {n * c.bytes, n * c.flops}; }
};

struct Costs {
  Cost forward, backward;
};

// Numbers are counted in double; `each` is the bytes of an activation. Beside bf16 the residual stream, logits and
// gradients of weights are f32.

struct SsdSizes {
  double tokens, heads, head_dim, state, groups;
};
/// FLOPs by the formula of kernels/ssd/ssd.h for chunks of 64, the fewest that keep tensor cores busy. No z.
inline Costs ssd_costs(const SsdSizes& s, double each = 2) {
  constexpr double Q = 64;
  const double steps = s.tokens * s.heads, x = steps * s.head_dim, BC = 2 * s.tokens * s.groups * s.state;
  const double by_head = steps * (4 * s.head_dim * s.state + 2 * Q * s.head_dim);
  const double by_group = s.tokens * s.groups * 2 * Q * s.state;
  return {{each * (2 * x + steps + BC), by_head + by_group},
          {each * (3 * x + 2 * steps + 2 * BC), 2 * by_head + 3 * by_group}};
}

/// Of n numbers.
inline Costs conv_costs(double n, double each = 2) { return {{2 * each * n}, {3 * each * n}}; }
inline Costs gated_norm_costs(double n, double each = 2) { return {{3 * each * n}, {5 * each * n}}; }
/// In the residual stream. Backward has one gradient where x has the stream's dtype, else two.
inline Costs norm_costs(double n, double each = 2) {
  return {{(2 * each + 8) * n}, {(4 + each + 4 + (each < 4 ? each + 4 : 4)) * n}};
}
/// Of n numbers of `table`; its gradient is written.
inline Costs embedding_costs(double n, double table, double each = 2) {
  return {{2 * each * n}, {each * n + 4 * table}};
}

/// The products of y = x Wᵀ.
struct LinearCosts {
  Cost y, dx, dw;
};
inline LinearCosts linear_costs(double rows, double in, double out, double each = 2) {
  const double flops = 2 * rows * in * out, xs = rows * in, ys = rows * out, ws = in * out;
  const Cost two{each * (xs + ys + ws), flops};
  return {two, two, {each * (xs + ys) + 4 * ws, flops}};
}

}  // namespace adder
