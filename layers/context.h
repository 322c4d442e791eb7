// What the layers of a model are told about the batch they see, passed down by value.
#pragma once

#include "adder/core/tensor.h"

namespace adder::layers {

enum class Mode : unsigned char { evaluate, train };  // train: dropout is on

struct Context {
  Mode mode = Mode::evaluate;
  Tensor document = {};  // i32 [batch, time]; undefined: every row is one document
  Tensor position = {};  // i32 [2], for dropout: the optimizer's step, and the number of row 0 in the global batch
};

}  // namespace adder::layers
