// What training a language model needs beyond parameters, gradients and moments, known from its shape alone.
#pragma once

#include "adder/layers/language_model.h"

namespace adder::layers {

/// The micro-batch of a training step.
struct MicroBatch {
  int64_t rows = 1, time = 1;
  DType dtype = DType::f32;  // what it computes in
  Device device = Device::cpu;
};

/// The most bytes that the pool hands out for the forward and the backward pass of one micro-batch: what the tape holds
/// of every block (language_model.h, mamba2.h and the operators' headers say what, for each Recompute), and beside it
/// the larger of what the head needs (parts of the logits, and the gradients that it makes on the way) and what the
/// last block's backward needs while nothing else was let go yet: gradients, what is made again, the SSD's states.
/// Small things are left out: sums of rows, positions. tests/training_plan_test.cpp holds it against real steps.
int64_t activation_bytes(const LanguageModelOptions& model, const MicroBatch& batch);

}  // namespace adder::layers
