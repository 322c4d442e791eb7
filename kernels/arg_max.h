// The most probable token: the largest of a row of logits.
#pragma once

#include "adder/core/tensor.h"

namespace adder {

/// to[i] = the column of the largest number in row i, the lowest one where several are equal. -1: no number of the row
/// is above minus infinity. -2 - j: the number in column j is the first one that is NaN or +infinity.
void arg_max(const Tensor& x, const Tensor& to);  // [rows, columns], rows may lie apart; i32 [rows], contiguous
void arg_max(Cpu, const Tensor& x, const Tensor& to);
void arg_max(Cuda on, const Tensor& x, const Tensor& to);  // x is f32

}  // namespace adder
