// Reading checkpoints (data/checkpoint.h writes them).
#pragma once

#include "adder/autograd/state.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace adder {

using Warn = std::function<void(const std::string& sentence)>;
void warn_on_stderr(const std::string& sentence);

struct RestoreOptions {
  bool all = false;  // a checkpoint that holds other states too is an error
  Warn warn = warn_on_stderr;
};

/// Fills the states from a run's newest whole checkpoint and returns its step; none if the run has no checkpoint.
/// Values are handed to `load` first, then the tensors are compared with what was saved, then filled: whatever number
/// of ranks saved them, f32 into f64 and back. Only reads: the run may go on meanwhile.
///
/// A damaged checkpoint is refused by name, a warning, and the one before it is used. Throws if there are checkpoints
/// but none is whole, and if the newest whole one does not fit: a tensor or state missing or left over, another shape
/// or dtype, another format, or what `load` throws.
std::optional<int64_t> restore(const std::string& run_folder, const std::vector<State>& states,
                               const RestoreOptions& options = {});

}  // namespace adder
