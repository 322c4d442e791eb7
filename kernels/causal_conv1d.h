// Depthwise causal convolution over time, fused with SiLU: what mixes neighbouring tokens before a selective scan.
//
//   s_t[c] = bias[c] + sum_{k = 0}^{width - 1} weight[c, width - 1 - k] x_{t-k}[c],    y_t = silu(s_t) or s_t
//
// (Gu & Dao 2023, sec. 3.4.) x_{-1}, x_{-2}, ... are the rows of the initial state, or zero. A document begins where
// its number differs from the previous token's, so a number may be used again; the tap t-k counts only if no document
// begins in (t-k, t]. The initial state belongs to the document of the first token. A tap that does not count is not
// read, so NaN in one document never reaches another.
//
// The final state is the last width - 1 inputs, rows of the initial state included when there are fewer tokens; rows
// outside the last document are zero. A run that starts from it with the next token of that document gives the outputs
// of one longer run, bit for bit; gradients flow through it.
//
//   g_t = dy_t silu'(s_t),     dx_t[c] = sum_k weight[c, width - 1 - k] g_{t+k}[c] + (dfinal row of t),
//   dweight[c, width - 1 - k] = sum_t g_t[c] x_{t-k}[c],     dbias = sum_t g_t,
//
// over the taps that count; the initial state's gradient is dx at t < 0. Backward keeps x, weight, bias, initial_state
// and document, and computes s again. The sums over time are partial sums of `block` tokens added in order, whatever
// the number of threads.
//
// All operands have one dtype, but beside bf16 the weight and the bias are f32; all arithmetic is then in f32.
//
// Floor: 2 values moved per element forward (x, y), 3 backward (x, dy, dx).
#pragma once

#include "adder/core/grads.h"

#include <array>
#include <tuple>

namespace adder {

struct CausalConv1d {
  Tensor x;                   // [batch, time, channel], rows may lie apart
  Tensor weight;              // [channel, width], the oldest tap first; width >= 1
  Tensor bias = {};           // [channel], optional
  Tensor initial_state = {};  // [batch, width - 1, channel], the oldest first; optional
  Tensor document = {};       // i32 [batch, time], optional
  bool silu = true;
  bool final_state = false;  // whether the second output is wanted; otherwise it is undefined
  auto inputs() { return std::tie(x, weight, bias, initial_state); }
  std::array<Tensor, 2> forward();  // y [batch, time, channel], final state [batch, width - 1, channel]
  void backward(const Tensor& dy, const Tensor& dfinal_state, Grads& to) const;
};

/// Where the gradients go; an undefined tensor: not wanted.
struct CausalConv1dGradients {
  Slot x, weight, bias;
  Tensor initial_state;  // overwritten
};

void causal_conv1d_forward(Cpu, const CausalConv1d& conv, const Tensor& y, const Tensor& final_state);
void causal_conv1d_forward(Cuda, const CausalConv1d& conv, const Tensor& y, const Tensor& final_state);
void causal_conv1d_backward(Cpu, const CausalConv1d& conv, const Tensor& dy, const Tensor& dfinal_state,
                            const CausalConv1dGradients& to);
void causal_conv1d_backward(Cuda, const CausalConv1d& conv, const Tensor& dy, const Tensor& dfinal_state,
                            const CausalConv1dGradients& to);

/// One token of every sequence, without gradients: the same y, bit for bit, as forward at that position.
struct CausalConv1dStep {
  Tensor x;          // [batch, channel], rows may lie apart
  Tensor state;      // [batch, width - 1, channel], the oldest first: read, then moved on by one token in place
  Tensor weight;     // [channel, width]
  Tensor bias = {};  // [channel], optional
  bool silu = true;
};
Tensor causal_conv1d_step(const CausalConv1dStep& step);  // y [batch, channel]
void causal_conv1d_step(Cpu, const CausalConv1dStep& step, const Tensor& y);
void causal_conv1d_step(Cuda, const CausalConv1dStep& step, const Tensor& y);

}  // namespace adder
