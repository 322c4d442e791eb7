// AdamW on flat memory: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
//
//   g = clip_factor gradient,   m = β1 m + (1 - β1) g,   v = β2 v + (1 - β2) g²
//   p = p - α (m / (1 - β1ᵗ) / (sqrt(v / (1 - β2ᵗ)) + ε) + λ p),   α = lr_scale * learning rate
//
// The decay λ is multiplied by the learning rate and by nothing else. All that changes from step to step lies in one
// small device tensor, the controls, so a step needs no answer from the device and can be replayed as a graph:
//
//   the host writes learning_rate and max_norm; sum_of_squares gives squares; adamw_controls the norm, clip_factor,
//   finite and the counts; then adamw_update runs block by block.
//
// A norm that is not finite leaves parameters and moments as they are, bit for bit.
// Cost of an update: 16 bytes read and 12 written for each f32 element (2 more for the bf16 copy), bound by memory.
#pragma once

#include "adder/core/tensor.h"

#include <span>
#include <vector>

namespace adder {

/// Positions in the controls, an f64 tensor [AdamWControls::size].
struct AdamWControls {
  enum : int64_t {
    learning_rate,     // before each parameter's lr_scale
    max_norm,          // gradients of a larger norm are scaled down to it; infinity: never
    squares,           // sum of the squares of all gradients
    norm,              // its root
    clip_factor,       // min(1, max_norm / norm)
    finite,            // 1: this step is applied; 0: it is skipped
    applied,           // steps applied so far, this one included: t
    skipped,           // steps skipped so far
    skipped_in_a_row,  // since the last one applied
    size
  };
};

/// to [1] f64 = sum over the tensors of the sum of squares, in f64, blocks of fixed size added in order: the same for
/// any number of threads. NaN and infinity go through. Contiguous tensors, f32 or f64.
void sum_of_squares(Cpu, std::span<const Tensor> tensors, const Tensor& to);
void sum_of_squares(Cuda, std::span<const Tensor> tensors, const Tensor& to);

/// From learning_rate, max_norm and squares: the norm, the clip factor, whether the step is applied, and the counts.
void adamw_controls(Cpu, const Tensor& controls);
void adamw_controls(Cuda, const Tensor& controls);

/// Elements [begin, end) of a block that are updated alike.
struct AdamWRange {
  int64_t begin = 0, end = 0;
  double weight_decay = 0;  // λ
  double lr_scale = 1;
};
/// The ranges as an update reads them: f64 [range, 4], the members in their order. Throws unless each begins where the
/// one before it ends, or later.
Tensor adamw_ranges(const std::vector<AdamWRange>& ranges, Device device);

/// One update of a flat block, one launch on the GPU; contiguous, all of one floating type. What lies in no range stays
/// as it is.
struct AdamWUpdate {
  Tensor parameter, gradient, exp_avg, exp_avg_sq;  // [n]: p, gradient, m, v
  Tensor rounded;                                   // bf16 [n]: gets the new parameter, rounded; optional
  Tensor controls;
  Tensor ranges;                                    // adamw_ranges(), none of which ends beyond n
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
};
void adamw_update(Cpu, const AdamWUpdate& u);
void adamw_update(Cuda, const AdamWUpdate& u);

}  // namespace adder
