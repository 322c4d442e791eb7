// Checkpoints: everything a run needs to go on as if it had never stopped.
//
//   Checkpoint checkpoint(o.out, {state(params), optimizer.state(), data.state()}, {.fresh = o.fresh});  // resumes
//   ... checkpoint.save(data.step());
//
// RUN/checkpoints/step_00000120/ holds manifest.json (data/manifest.h) and one HDF5 file a rank, rank_0000.h5, with a
// dataset STATE/NAME@BEGIN for every piece of a tensor that no lower rank holds. Pieces are found by name and range, so
// any later number of ranks reads them; f32 is read into an f64 run and back.
//
// A save writes step_N.tmp, waits for the disk and renames the folder: a kill or a power cut leaves the checkpoint
// whole or not there. Of whole checkpoints the last `keep` stay.
#pragma once

#include "adder/autograd/state.h"
#include "adder/data/restore.h"
#include "adder/distributed/communicator.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace adder {

struct Manifest;

/// The ranks that hold the run's pieces. exchange(text) returns every rank's text, by rank, to all.
struct CheckpointRanks {
  int64_t rank = 0, size = 1;
  std::function<std::vector<std::string>(const std::string&)> exchange = [](const std::string& own) {
    return std::vector<std::string>{own};
  };
};

CheckpointRanks checkpoint_ranks(const Communicator& world);

struct CheckpointOptions {
  bool fresh = false;  // do not resume: existing checkpoints move to RUN/checkpoints.1 (.2, ...)
  int64_t keep = 2;
  Warn warn = warn_on_stderr;
  CheckpointRanks ranks = {};
};

/// The checkpoints of one run. What the states refer to must outlive it.
class Checkpoint {
 public:
  /// Resumes: restore() of data/restore.h with all states; throws what it throws. Throws too if another run has the
  /// folder open or if it cannot be written.
  Checkpoint(const std::string& run_folder, std::vector<State> states, CheckpointOptions options = {});
  ~Checkpoint();

  /// The step resumed from; none: a new run.
  std::optional<int64_t> resumed() const { return resumed_; }
  /// Saves the states under that step; nothing if it is the step last saved or resumed from. If it throws, on all ranks
  /// then, the earlier checkpoints are as they were.
  void save(int64_t step);

 private:
  struct Lock;
  bool first() const { return options_.ranks.rank == 0; }
  std::vector<std::string> together(const std::function<std::string()>& phase) const;
  void open_folder();
  Manifest write_file(const Manifest& plan, const std::string& to) const;
  void publish(const std::vector<std::string>& ranks, int64_t step, const std::string& from);
  void remove_old() const;

  std::string run_folder_, folder_;  // RUN, RUN/checkpoints
  std::vector<State> states_;
  CheckpointOptions options_;
  std::unique_ptr<Lock> lock_;
  std::optional<int64_t> resumed_, last_;  // last_: newest that is known to be whole
};

}  // namespace adder
