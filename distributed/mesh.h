// Mesh: which processes work together on what. A mesh is a value that layers and optimizers are given; every layer is
// written once, in its parallel form, and a communicator of size 1 does nothing.
#pragma once

#include "adder/distributed/communicator.h"

namespace adder {

struct MeshSizes {
  int64_t data = 0;  // 0: as many as there are processes for
  int64_t tensor = 1, sequence = 1;
};

/// world = data x sequence x tensor. Tensor neighbours, who talk most, have neighbouring ranks: world rank =
/// (data rank * sequence size + sequence rank) * tensor size + tensor rank.
struct Mesh {
  Communicator world;
  Communicator data;      // members read different samples: gradients are summed over them
  Communicator tensor;    // members hold different heads and groups of one layer
  Communicator sequence;  // members hold successive stretches of one sequence

  /// This process alone.
  Mesh() = default;
  /// Cuts a world up; every process of it makes the call. Throws unless the sizes multiply to the number of processes.
  explicit Mesh(const Communicator& world, const MeshSizes& sizes = {});
};

}  // namespace adder
