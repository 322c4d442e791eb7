// Saved runs: run folders as found on the disk, for programs that use a model and do not train it. Only reads: the run
// may go on meanwhile.
#pragma once

#include "adder/distributed/flags.h"
#include "adder/layers/language_model.h"

#include <optional>
#include <string>

namespace adder {

/// What run.json (distributed/run_folder.h) says of a run that has a checkpoint.
struct SavedRun {
  std::string folder = {};
  std::string recipe = {};  // the program that trained it
  std::string flags = {};   // its flags as a JSON object, as Flags::to_json() wrote them

  /// Gives the options that the flags are bound to the values of this run, but for flags that may change; none of the
  /// flags may take a list. Throws if a value is no value of its flag.
  void assign(Flags& to) const;
};

/// Throws if there is no such folder, no run.json in it or a damaged one, or no checkpoint yet.
SavedRun saved_run(const std::string& folder);
/// The shape of the model that a run of `train` trains.
layers::LanguageModelOptions model_options(const SavedRun& run);

/// The run folder inside `runs` whose newest checkpoint is the youngest; none if none there has one.
std::optional<std::string> newest_run(const std::string& runs);

}  // namespace adder
