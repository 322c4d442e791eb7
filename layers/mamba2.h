// Mamba2: the block of Dao & Gu 2024, sec. 7.
//
//   [z0 | x0 | z | x | B | C | dt] = in_proj(u)
//   [x | B | C] = silu(conv1d([x | B | C]))
//   y = SSD(x, dt, A_log, B, C, D)                                  (kernels/ssd/ssd.h)
//   n = RMSNorm(y ⊙ silu(z)) over groups of channels                or y ⊙ silu(z) inside the SSD without the norm
//   out = out_proj([silu(z0) ⊙ x0 | n])                             z0, x0: the MLP part, if d_ssm < d_inner
//
// No part of in_proj's output is copied: its parts are views, and their gradients are written into one buffer.
//
// For backward the tape holds, a token, besides u: in_proj's output, 2 d_inner + 2 G N + H numbers; the SSD's output,
// d_ssm (not with Recompute::scan); and on the CPU d_ssm N numbers a chunk of states. Only with Recompute::none it
// holds the convolution's output, d_ssm + 2 G N, and what out_proj reads, d_inner.
#pragma once

#include "adder/distributed/mesh.h"
#include "adder/layers/causal_conv1d.h"
#include "adder/layers/context.h"
#include "adder/layers/linear.h"
#include "adder/layers/rms_norm.h"

#include <limits>

namespace adder::layers {

struct Mamba2Options {
  int64_t d_model = 768;
  int64_t d_state = 128;         // N
  int64_t d_conv = 4;            // width of the convolution
  int64_t expand = 2;            // d_inner = expand d_model
  int64_t head_dim = 64;         // P
  int64_t groups = 1;            // of B and C; divides the heads
  int64_t d_ssm = 0;             // channels through the SSD, the rest is a gated MLP; 0: all of d_inner
  int64_t norm_groups = 0;       // channels are normalised in so many groups; 0: as `groups`
  bool rms_norm = true;          // false: the gate is in the SSD and nothing is normalised
  bool norm_before_gate = false;
  bool D_per_channel = false;    // D [head, head_dim] instead of [head]
  bool bias = false;             // of in_proj and out_proj
  bool conv_bias = true;
  double eps = 1e-5;
  double A_min = 1, A_max = 16;  // initial -A, uniform
  double dt_init_min = 1e-3, dt_init_max = 0.1, dt_init_floor = 1e-4;  // initial Δ, log-uniform
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();  // limits of Δ
  double out_scale = 1;          // of out_proj's initial values: 1/sqrt(residual branches of the model)
  int64_t chunk = 0;             // tokens of an SSD chunk; 0: the kernel's choice

  int64_t d_inner() const { return expand * d_model; }
  int64_t ssm() const { return d_ssm > 0 ? d_ssm : d_inner(); }
  int64_t mlp() const { return d_inner() - ssm(); }
  int64_t heads() const { return ssm() / head_dim; }
  int64_t conv_channels() const { return ssm() + 2 * groups * d_state; }
  /// Throws, naming the fields, if sizes do not fit together.
  void validate() const;
};

/// What a sequence leaves behind, for decoding.
struct Mamba2State {
  Tensor conv;  // [batch, d_conv - 1, conv_channels], the last inputs of the convolution, oldest first, as they are:
                // bf16 where they were computed in bf16, so that nothing is lost
  Tensor ssm;   // [batch, head, head_dim, state], at least f32
};

struct Mamba2 {
  Mamba2Options options;
  Tensor in_proj, in_bias;     // packed: [parts, d_model], [parts]
  CausalConv1d conv;
  Tensor A_log, dt_bias, D;    // [head]; D also [head, head_dim]
  Tensor norm;                 // [ssm], if rms_norm
  Linear out_proj;

  Mamba2(Params p, const Mesh& mesh, const Mamba2Options& o);

  /// [batch, time, d_model] -> the same.
  Tensor operator()(const Tensor& u, const Context& context = {}) const;
  /// The same from a state, which is moved on (an undefined one: from nothing); gradients flow through it.
  Tensor operator()(const Tensor& u, Mamba2State& state, const Context& context = {}) const;
  /// One token [batch, d_model] -> the same; the state is moved on in place. No gradient.
  Tensor step(const Tensor& u, const Mamba2State& state) const;
  /// The norm of a residual block and the step: the branch's output and the residual stream. For few sequences in bf16
  /// on a GPU they are three kernels (kernels/mamba2_step.h) instead of six, with roundings of their own.
  std::array<Tensor, 2> step(const RmsNorm& before, const Tensor& x, const Tensor& residual,
                             const Mamba2State& state) const;
  /// The state before the first token: zero.
  Mamba2State zero_state(int64_t batch) const;

 private:
  Tensor run(const Tensor& u, Mamba2State* state, const Context& context) const;
  std::vector<Tensor> parts(const Tensor& projected) const;
  Tensor scan_step(const std::vector<Tensor>& parts, const Tensor& mixed, const Mamba2State& state) const;
  Tensor gated(const Tensor& y, const Tensor& z, const Tensor& z0, const Tensor& x0) const;
};

}  // namespace adder::layers
