// A batch: what the loader gives and a language model takes.
#pragma once

#include "adder/core/tensor.h"

namespace adder {

/// The model predicts targets[b, t] from tokens[b, ..t] of the same document. The end-of-document token that precedes a
/// document is its first input, so a position belongs to the document of its target and every token is a target.
struct Batch {
  Tensor tokens;        // [batch, time] i32
  Tensor targets;       // [batch, time] i32; -1: not counted
  Tensor document;      // [batch, time] i32; where it differs from the previous position, a new document starts
  int64_t counted = 0;  // targets that are not -1
  // Of a training step's micro-batches:
  Tensor scale = {};     // [1] f64: 1 / (targets counted in the whole step, over all micro-batches and ranks)
  Tensor position = {};  // [2] i32: the step, and the number of the first row in the step's batch
};

/// The same batch on a device; to a GPU without waiting for it.
inline Batch to_device(const Batch& b, Device device) {
  return {.tokens = to_device(b.tokens, device), .targets = to_device(b.targets, device),
          .document = to_device(b.document, device), .counted = b.counted, .scale = to_device(b.scale, device),
          .position = to_device(b.position, device)};
}

}  // namespace adder
