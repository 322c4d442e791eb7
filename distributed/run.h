// Run: one process of a program from its command line to its end. It knows device, threads, mesh, run folder and log.
// Of several processes, started by mpirun, the first prints and keeps the run folder; the others are silent.
//
// A run computes on GPUs if every process gets one of its own (distributed/gpus.h), and there in bf16; otherwise on the
// CPU in f32. Both may change when it goes on: checkpoints hold f32 masters.
//
//   int main(int argc, char** argv) try {
//     Options o;
//     Run run(argc, argv, flags(o), {.out = "runs/mamba2"});
//     ...                                                     // model, optimizer, data
//     Checkpoint checkpoint(run.folder(), ...);               // resumes: step() is 0 or where the run goes on
//     run.start({.step = data.step(), .steps = o.steps, .tokens_per_step = o.batch * o.time});
//     while (data.step() < o.steps && !run.stopping()) {
//       ...
//       run.log(data.step(), {{"loss", loss}, {"grad_norm", norm}, {"learning_rate", rate}});
//       if (run.should_validate(data.step())) run.log(data.step(), {{"validation_loss", validate()}});
//       if (run.should_save(data.step())) checkpoint.save(data.step());
//     }
//     checkpoint.save(data.step());
//     run.finish();
//   } catch (...) {
//     return adder::exit_status();                            // distributed/program.h
//   }
#pragma once

#include "adder/core/later.h"
#include "adder/distributed/environment.h"
#include "adder/distributed/flags.h"
#include "adder/distributed/mesh.h"
#include "adder/distributed/progress.h"
#include "adder/distributed/run_folder.h"
#include "adder/distributed/stop.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace adder {

/// The defaults of the flags that Run adds to those of the program, under "Run".
struct RunOptions {
  std::string out = {};         // --out: the run folder. Empty: the program keeps none, and has only the next three
  int64_t seed = 1;             // --seed
  int64_t threads = 0;          // --threads; 0: the cores it may use, shared among the ranks there; or OMP_NUM_THREADS
  std::string device = {};      // --device, cpu or cuda; cuda or empty: GPUs if they answer
  std::string dtype = {};       // --dtype, f32 or bf16; empty: bf16 on a GPU, f32 on the CPU (so is bf16 there)
  bool tf32 = false;            // --tf32
  bool fresh = false;           // --fresh
  std::string time_limit = {};  // --time-limit
  std::string defaults = {};    // --defaults, cpu or gpu; empty: those of the device that the run began on
  double peak = 0;              // --peak, TFLOP/s of the device; 0: what is known of the GPU
  int64_t validate_every = 0;   // --validate-every, in steps; 0: only when the recipe does so at its end
  int64_t save_every = 0;       // --save-every, in steps; 0: only at the end
  bool plans = false;           // whether the program knows --plan: see planning()
  bool alone = false;           // whether the program is one process's work: several are refused
};

/// Where a run begins, or goes on.
struct RunStart {
  int64_t step = 0, steps = 0;  // steps done; steps in all
  int64_t tokens_per_step = 0;  // over all ranks; 0: the log shows no tokens/s
  double flops_per_token = 0;   // of the model (LanguageModelOptions::training_flops); 0: the log shows no utilisation
};

/// One thing to log: a name and a number, or a tensor of one element.
struct Logged {
  std::string name;
  Later value;
};

class Run {
 public:
  /// Starts MPI if mpirun started the program, parses the command line, checks the processor, sets the threads, locks
  /// the run folder. Throws HelpShown, UsageError (also when a flag is not what the saved run in the folder had, and
  /// --fresh was not given) and Error.
  Run(int argc, const char* const* argv, Flags flags, RunOptions options = {});
  ~Run();
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  Device device() const { return options_.device == "cuda" ? Device::cuda : Device::cpu; }
  /// What products compute in.
  DType dtype() const { return options_.dtype == "bf16" ? DType::bf16 : DType::f32; }
  const Mesh& mesh() const { return mesh_; }
  uint64_t seed() const { return static_cast<uint64_t>(options_.seed); }
  /// --out
  const std::string& folder() const { return options_.out; }
  /// --fresh: checkpoints in the folder are not to be loaded.
  bool fresh() const { return options_.fresh; }
  const Flags& flags() const { return flags_; }
  /// FLOP/s of this process's device at most; 0: not known.
  double peak() const { return options_.peak * 1e12; }
  /// --plan: the program says what it would take, and ends. Nothing was written, no folder made or locked.
  bool planning() const { return plan_; }

  /// Writes run.json, cuts the metrics after `start.step`, says where it computes, starts the clock. Until here nothing
  /// was overwritten.
  void start(const RunStart& start);
  /// Whether to end before the last step: Ctrl-C, SIGTERM, SIGUSR1, a file `stop` in the run folder or --time-limit
  /// (counted from the construction). Agreed by all ranks, so every rank asks once a step.
  bool stopping();
  /// "Ctrl-C", "the time limit", ...; empty as long as nothing asked to stop.
  std::string stop_reason() const { return cause_ == StopCause::none ? "" : name(cause_); }

  bool should_validate(int64_t step) { return due(step, options_.validate_every); }
  bool should_save(int64_t step) { return due(step, options_.save_every); }

  /// Writes a line of metrics.jsonl. What lies on a GPU is not waited for: the line is written with the next one, when
  /// the step has long ended, or before a validation, a checkpoint, say() and the end. So the host stays one step ahead
  /// of the GPU, and no more. With a value "loss" it is a training step, which moves the progress line (that
  /// shows "grad_norm" and "learning_rate" too) and adds "tokens_per_second" to the metrics; and where peak() is known
  /// "model_flops_utilisation", its share of that. Without, a line of its own is printed. "loss" and "validation_loss"
  /// are drawn in loss.svg, the speed in tokens_per_second.svg.
  void log(int64_t step, std::vector<Logged> values);
  /// Prints a line, which the progress line makes way for.
  void say(std::string_view line);
  /// Draws the curve and, if the run was stopped, says how to go on. Call it after the last checkpoint is saved.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  using Points = std::vector<std::pair<double, double>>;  // (step, value)

  void add_flags();
  void choose_device();
  void set_threads();
  void settle_defaults();
  void check_saved();
  bool due(int64_t step, int64_t every);
  void write_pending();
  void log_step(int64_t step, NamedNumbers& numbers);
  void draw() const;

  Environment environment_;
  std::string recipe_, command_;
  RunOptions options_;
  bool plan_ = false;
  Flags flags_;
  Mesh mesh_;
  std::optional<RunFolder> folder_;   // only on the first rank
  std::optional<Stop> stop_;          // while it lives, signals do not kill: a program without a folder has none
  StopCause cause_ = StopCause::none;
  RunStart start_;
  std::string changes_;               // of device, dtype and tf32, since the run was saved
  std::optional<std::pair<int64_t, std::vector<Logged>>> pending_;  // step and values of a line not written yet
  int64_t step_ = 0;
  Progress progress_;
  Pace pace_;
  Clock::time_point last_step_, next_drawing_;
  Points loss_, validation_loss_, speed_;
  std::vector<double> starts_;        // steps after which the run went on
};

}  // namespace adder
