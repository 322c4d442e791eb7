// Token embedding: rows of a table.
#pragma once

#include "adder/core/grads.h"

#include <tuple>

namespace adder {

/// y[.] = weight[tokens[.]]. A token outside [0, vocabulary) throws, naming its position; on the GPU, which nobody
/// waits for, its row becomes NaN instead, and it gives no gradient. Backward keeps the tokens: dweight[v] = sum of dy
/// over the positions of token v, in their order, so that the result does not depend on the number of threads.
struct Embedding {
  Tensor tokens;  // i32 [batch, time], or any other shape
  Tensor weight;  // [vocabulary, channel]
  auto inputs() { return std::tie(weight); }
  Tensor forward();  // [batch, time, channel]
  void backward(const Tensor& dy, Grads& to) const;
};

void embedding_forward(Cpu, const Tensor& tokens, const Tensor& weight, const Tensor& y);
void embedding_forward(Cuda, const Tensor& tokens, const Tensor& weight, const Tensor& y);
void embedding_backward(Cpu, const Tensor& tokens, const Tensor& dy, const Slot& dweight);
void embedding_backward(Cuda, const Tensor& tokens, const Tensor& dy, const Slot& dweight);

}  // namespace adder
