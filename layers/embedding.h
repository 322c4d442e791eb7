// Embedding: a row of the table for each token.
#pragma once

#include "adder/autograd/params.h"
#include "adder/autograd/tape.h"
#include "adder/kernels/embedding.h"

namespace adder::layers {

struct Embedding {
  Tensor weight;  // [vocabulary, channel]; a product's weight too, where the output shares it

  /// Initial values N(0, 0.02²).
  Embedding(Params p, int64_t vocabulary, int64_t channels)
      : weight(p.create("weight", {vocabulary, channels}, init::normal(0.02), {.product = true})) {}
  /// i32 [batch, time] -> [batch, time, channel]
  Tensor operator()(const Tensor& tokens) const {
    return apply(adder::Embedding{.tokens = tokens, .weight = weight});
  }
};

}  // namespace adder::layers
