// Matrix products.
#pragma once

#include "adder/core/grads.h"

#include <functional>
#include <string>
#include <tuple>
#include <vector>

namespace adder {

/// c = alpha op(a) op(b) + beta c + bias, with op the identity or the transpose of the last two axes.
/// a, b, c: [rows, columns], or all [batch, rows, columns]; rows may lie apart. beta = 0 overwrites c, NaN included.
/// On the CPU all are f32 or f64. On the GPU a and b are bf16 and c is bf16 or f32, or all are f32; sums are in f32.
struct Product {
  Tensor a, b, c;
  bool transpose_a = false, transpose_b = false;
  double alpha = 1, beta = 0;
  Tensor bias = {};  // [columns of c], added to each of its rows; then beta is 0
};
void multiply(Cpu, const Product& p);
/// The algorithm, and so every bit, is a function of the shapes alone.
void multiply(Cuda on, const Product& p);
void multiply(const Product& p);

/// One of the algorithms that cuBLASLt proposes for a product.
struct ProductWay {
  std::string name;
  std::function<void()> multiply;
};
/// For measurements: all of them, however they add, of which multiply() takes one.
std::vector<ProductWay> ways_to_multiply(Cuda on, const Product& p);

/// Whether f32 products on the GPU may round their factors to TF32 (10 bits of mantissa): false unless allowed.
void allow_tf32(bool allowed);
bool tf32_allowed();

/// op(a) is m x k, op(b) k x n; a stride is the number of elements from one row to the next.
struct ProductSizes {
  int64_t batch, m, n, k, stride_a, stride_b, stride_c;
};
/// Throws unless the operands fit.
ProductSizes sizes_of(const Product& p);

/// y = x Wᵀ + bias over the last axis: the affine map of a linear layer.
/// Backward keeps x and the weight. dx = dy W, dW = dyᵀ x, dbias = sum of dy over the rows.
struct Matmul {
  Tensor x;       // [..., in]
  Tensor weight;  // [out, in]
  Tensor bias;    // [out], optional; added in y's dtype
  bool wide = false;  // y in f32 where x is bf16
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
