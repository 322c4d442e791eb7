// Mesh: which processes work together on what. A mesh is a value that layers and optimizers are given; every layer is
// written once, in its parallel form, and a communicator of size 1 does nothing.
#pragma once

#include "adder/core/tensor.h"

#include <cstdint>

namespace adder {

enum class Reduce : unsigned char { sum, max };

/// A group of processes. Collectives work in place on contiguous tensors; every member calls them in the same order.
class Communicator {
 public:
  int64_t rank() const { return 0; }
  int64_t size() const { return 1; }

  /// x = the sum (or maximum) of x over the members, the same bits on each.
  void all_reduce(const Tensor& x, Reduce reduce = Reduce::sum) const;
  /// x = the root's x.
  void broadcast(const Tensor& x, int64_t root = 0) const;
  /// Returns once every member has called it.
  void barrier() const {}
};

/// world = data x tensor x sequence. Today a program is one process, so each of them has size 1.
struct Mesh {
  Communicator world;
  Communicator data;      // members read different samples: gradients are summed over them
  Communicator tensor;    // members hold different heads and groups of one layer
  Communicator sequence;  // members hold successive stretches of one sequence
};

}  // namespace adder
