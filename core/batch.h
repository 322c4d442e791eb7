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

/// New tensors on a device, not initialised, for such batches to be copied into.
inline Batch empty_like(const Batch& b, Device device) {
  const auto empty = [&](const Tensor& t) { return t ? Tensor(t.shape(), t.dtype(), device) : Tensor(); };
  return {.tokens = empty(b.tokens), .targets = empty(b.targets), .document = empty(b.document), .counted = b.counted,
          .scale = empty(b.scale), .position = empty(b.position)};
}

/// to = from: the same members, of the same shapes, from any device to any device.
inline void copy(const Batch& from, Batch& to) {
  for (Tensor Batch::* t : {&Batch::tokens, &Batch::targets, &Batch::document, &Batch::scale, &Batch::position})
    if (from.*t || to.*t) copy(from.*t, to.*t);
  to.counted = from.counted;
}

}  // namespace adder
