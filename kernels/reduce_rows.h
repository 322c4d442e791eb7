// What the members of a group bring, made one: the sum or the maximum, in an order that nothing can change.
#pragma once

#include "adder/core/tensor.h"

namespace adder {

enum class Reduce : unsigned char { sum, max };  // max: NaN is the largest

/// to[i] = the sum (or maximum) over r of rows[r][i], from the first row on, in f64, rounded once (bf16: to f32 first;
/// i32: in 64 bits, modulo 2^32): the same bits on every device. Row `own` is not read there but in `mine`, which may
/// be `to`.
/// rows [size, n], mine [n], to [n]: contiguous, of one dtype.
void reduce_rows(Cpu, const Tensor& rows, const Tensor& mine, int64_t own, Reduce reduce, const Tensor& to);
void reduce_rows(Cuda on, const Tensor& rows, const Tensor& mine, int64_t own, Reduce reduce, const Tensor& to);

}  // namespace adder
