// Products with few rows, as in decoding, where all the time goes into reading the weight.
#pragma once

#include "adder/kernels/matmul.h"

namespace adder {

/// Whether it is c = a bᵀ [+ bias], with at most 16 rows of bf16, or 64 and a small weight, that can be read in pieces
/// of 16 bytes: a function of shapes and alignment. A row's bits then depend neither on their number nor on the others.
bool has_few_rows(const Product& p, const ProductSizes& s);
void multiply_few_rows(Cuda on, const Product& p, const ProductSizes& s);

}  // namespace adder
