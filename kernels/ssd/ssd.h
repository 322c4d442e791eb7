// SSD, the state space dual layer of Mamba-2.                        Dao & Gu 2024, "Transformers are SSMs", sec. 6-7
//
// For head h with group g = h / (heads / groups), in at least f32:
//
//   Δ_t = clamp(softplus(dt_t + dt_bias), dt_min, dt_max)      a_t = -exp(A_log) Δ_t <= 0
//   S_t = e^{a_t} S_{t-1} + Δ_t x_t B_tᵀ                       [head_dim, state]
//   y_t = S_t C_t + D ⊙ x_t                                    then y_t ⊙ silu(z_t) if z is given
//
// On every backend a_t is cut at -40 (a decay to 4e-18 stands for any stronger one; the gradient is then 0). A document
// starts from the state 0, the first one of a row from initial_state, and what one holds never reaches another, nor a
// batch row another; NaN included, with the one exception named below.
//
// The CPU, f32 and f64, goes chunk by chunk: with cs_i the sum of a up to and including token i of a chunk and S the
// state that enters it,
//
//   Y_i = Σ_{j<=i} (C_i·B_j) e^{cs_i - cs_j} Δ_j x_j + e^{cs_i} S C_i
//   S' = e^{cs_Q} S + Σ_j e^{cs_Q - cs_j} Δ_j x_j B_jᵀ
//
// so that nearly all work is matrix products. cs is kept in two numbers, so that a small decay after a large one loses
// no digits. A chunk ends where a document ends: documents share no product. Inside a chunk, where the causal mask is a
// zero in a product, a NaN may reach earlier tokens of its own document. The state that enters a chunk is kept only
// where one does: many documents make many chunks, not many states; short documents cost time, as products of a few
// tokens are slow. FLOPs per token and head, P = head_dim, N = state, Q = chunk, multiply and add counted: forward
// 4 P N + 2 Q P (+ 2 Q N once a group), backward twice and a half that; the products over Q are counted in full, though
// half of each is masked.
//
// The GPU has two ways. bf16 with P <= 64 and N <= 128, both multiples of 8, and rows of x, B and C that lie at 16
// bytes, goes through tensor cores in chunks of 64 tokens, documents or not (chunked.h). There alone a NaN may also
// reach other tokens of its chunk of 64, those of another document included, and from B, C or Δ what follows of the
// document beside it. All else, f32 above all, goes token by token, as the recurrence says it, up to 512 states
// (recurrent.h): a NaN reaches no token before it in forward, and no other document. That is much slower: it is the way
// of tests and of exact runs, not of training.
#pragma once

#include "adder/core/grads.h"

#include <array>
#include <limits>
#include <tuple>

namespace adder {

/// Operands have one dtype; but where x, dt, B, C and z are bf16, the others, the final state among them, are f32.
struct Ssd {
  Tensor x;              // [batch, time, head, head_dim]
  Tensor dt;             // [batch, time, head]              before bias and softplus
  Tensor A_log;          // [head]                           A = -exp(A_log)
  Tensor B, C;           // [batch, time, group, state]      groups divide heads
  Tensor D;              // [head] or [head, head_dim]       optional: the skip
  Tensor z;              // as x                             optional: the gate
  Tensor dt_bias;        // [head]                           optional
  Tensor initial_state;  // [batch, head, head_dim, state]   optional: the state before the first token
  Tensor document;       // i32 [batch, time]                optional: one starts where it differs from the token before
  bool softplus = true;  // false: Δ = clamp(dt + dt_bias)
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();  // Δ beyond them is clamped, gradient 0
  int64_t chunk = 0;     // tokens, at most 1024; 0: the backend's choice. The result depends on it by rounding alone.
                         // The GPU takes it as the segments of backward token by token; chunks there have 64
  bool final_state = false;  // whether the second output is wanted; otherwise it is undefined

  // Kept for backward, besides all inputs but initial_state:
  Tensor states = {};    // [entered, head, head_dim, state] the state that enters each chunk that one enters; the GPU
                         //                                  keeps initial_state alone and finds the others again
  Tensor ungated = {};   // as x, only with z                y before the gate; not rounded to bf16: dz is the product
  bool has_initial_state = false;

  auto inputs() { return std::tie(x, dt, A_log, B, C, D, z, dt_bias, initial_state); }
  /// y [as x] and the state after the last token [batch, head, head_dim, state].
  std::array<Tensor, 2> forward();
  void backward(const Tensor& dy, const Tensor& dfinal, Grads& to) const;
};

/// Where the outputs of the kernel go; the caller allocates.
struct SsdResult {
  Tensor y, final_state;  // contiguous; an undefined final state is not wanted
  Tensor states, ungated;  // as in Ssd
};
/// Where the gradients go, all overwritten. D, z, dt_bias and initial_state may be undefined: not wanted. Tokens of x,
/// dt, B, C and z may lie apart, but each side by side; the others are contiguous.
struct SsdGradients {
  Tensor x, dt, A_log, B, C, D, z, dt_bias, initial_state;
};

/// How many states a backend keeps: the first axis of `states`.
int64_t ssd_states(Cpu, const Ssd& op);
int64_t ssd_states(Cuda, const Ssd& op);
void ssd_forward(Cpu, const Ssd& op, const SsdResult& to);
void ssd_forward(Cuda, const Ssd& op, const SsdResult& to);
/// dfinal may be undefined: zero.
void ssd_backward(Cpu, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to);
void ssd_backward(Cuda, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to);

/// One token of decoding: moves the state on and returns y. No gradient. dtypes as in Ssd; the state is of the others.
struct SsdStep {
  Tensor x;        // [batch, head, head_dim]
  Tensor dt;       // [batch, head]
  Tensor A_log;    // [head]
  Tensor B, C;     // [batch, group, state]
  Tensor D, z, dt_bias;  // as in Ssd, optional
  Tensor state;    // [batch, head, head_dim, state], contiguous, updated in place
  bool softplus = true;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};
Tensor ssd_step(Cpu, const SsdStep& step);  // y, as x
Tensor ssd_step(Cuda, const SsdStep& step);
Tensor ssd_step(const SsdStep& step);

}  // namespace adder
