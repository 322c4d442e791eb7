// Matrix products.
#pragma once

#include "adder/core/grads.h"

#include <tuple>

namespace adder {

/// c = alpha op(a) op(b) + beta c, with op the identity or the transpose of the last two axes.
/// a, b, c: [rows, columns], or all [batch, rows, columns]; rows may lie apart. f32 or f64.
/// beta = 0 overwrites c, NaN included.
struct Product {
  Tensor a, b, c;
  bool transpose_a = false, transpose_b = false;
  double alpha = 1, beta = 0;
};
void multiply(Cpu, const Product& p);
void multiply(Cuda, const Product& p);
void multiply(const Product& p);

/// y = x Wᵀ + bias over the last axis: the affine map of a linear layer.
/// Backward keeps x and the weight. dx = dy W, dW = dyᵀ x, dbias = sum of dy over the rows.
struct Matmul {
  Tensor x;       // [..., in]
  Tensor weight;  // [out, in]
  Tensor bias;    // [out], optional
  auto inputs() { return std::tie(x, weight, bias); }
  Tensor forward();  // [..., out]
  void backward(const Tensor& dy, Grads& to) const;
};

/// c = op(a) op(b) of matrices or of batches of matrices. Backward keeps a and b.
struct BatchedMatmul {
  Tensor a, b;  // [rows, columns] or [batch, rows, columns]
  bool transpose_a = false, transpose_b = false;
  auto inputs() { return std::tie(a, b); }
  Tensor forward();
  void backward(const Tensor& dc, Grads& to) const;
};

/// to[j] = (accumulate ? to[j] : 0) + sum over the rows of x[., j]: [..., n] -> [n], in a fixed order.
void sum_rows(Cpu, const Tensor& x, const Tensor& to, bool accumulate);
void sum_rows(Cuda, const Tensor& x, const Tensor& to, bool accumulate);

}  // namespace adder
