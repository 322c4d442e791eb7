// Where a run's checkpoints lie: RUN/checkpoints/step_00000120/{manifest.json, rank_0000.h5, ...}. A dataset of a
// rank's file is STATE/NAME@BEGIN. Shared by saving (data/checkpoint.h) and reading (data/restore.h).
#pragma once

#include "adder/autograd/state.h"

#include <cstdint>
#include <string>
#include <vector>

namespace adder::layout {

std::string folder(const std::string& run_folder);
std::string checkpoint(const std::string& folder, int64_t step);
std::string manifest(const std::string& checkpoint);
std::string file(const std::string& checkpoint, int64_t rank);
std::string dataset(const std::string& tensor, int64_t begin);

/// Names in a folder; none if it does not exist.
std::vector<std::string> entries(const std::string& folder);
/// The steps that have a checkpoint, newest first.
std::vector<int64_t> steps(const std::string& folder);

/// Calls f(STATE/NAME, piece) for every piece.
template <class F>
void each_piece(const std::vector<State>& states, F&& f) {
  for (const State& state : states)
    for (const Piece& piece : state.tensors) f(state.name + "/" + piece.name, piece);
}

}  // namespace adder::layout
