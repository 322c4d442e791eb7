// AdamW over the parameters of a model; the formula is in kernels/adamw.h.
//
//   AdamW optimizer(params, run.mesh(), {.beta2 = 0.95, .weight_decay = 0.1});
//   backward(loss);                                                   // once a micro-batch: gradients add
//   const Tensor norm = optimizer.step(schedule(step), {.clip = 1});  // and the gradients are cleared
//
// Nothing waits for the device: the norm is a tensor, and whether it was finite is decided where it lies. One that is
// NaN or infinite leaves weights and moments as they are, bit for bit; such steps are counted, and bias correction
// counts only the others. In a bf16 run the same launch writes master and rounded copy. A parameter that no gradient
// reached has a zero gradient: it and its moments still decay.
//
// Over several processes every one of them makes the same update: a step first sums the gradients over mesh.data and
// mesh.sequence, whose members see other tokens. (Losses carry the factor 1 / targets of the whole step, so sums are
// what is wanted.) Nothing is summed over mesh.tensor: a part of a parameter that is cut there (shard_axis) belongs to
// one member, and the layers give every member the whole gradient of one that is not.
#pragma once

#include "adder/autograd/params.h"
#include "adder/autograd/state.h"
#include "adder/core/later.h"
#include "adder/distributed/mesh.h"

namespace adder {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // of the parameters whose options say decay
};

struct StepOptions {
  double clip = 1.0;  // gradients of a larger global norm are scaled down to it; 0: never
};

class AdamW {
 public:
  /// All parameters must exist by now. Throws if an option is out of range, and (for now) if mesh.tensor has several
  /// members.
  AdamW(const Params& params, const Mesh& mesh, const AdamWOptions& options = {});
  /// In a program of one process; throws in any other, where it would train each process apart.
  explicit AdamW(const Params& params, const AdamWOptions& options = {});

  /// One update with the gradients collected since the last one, here and on the other processes, which make the same
  /// call. Returns their global norm before clipping, f64 [1], which the next step overwrites.
  Tensor step(double learning_rate, const StepOptions& options = {});

  // The parts of step(): of them update() alone is work on the device that is the same every time, so that it can be
  // captured together with the forward and the backward pass (core/captured.h), prepare() before and watch() after it.
  void prepare(double learning_rate, const StepOptions& options = {}) const;
  Tensor update();
  void watch();

  /// Moments and counts, for checkpoints. Refers to this optimizer.
  State state();

  struct Moments {
    std::string name;            // of the logical tensor
    Tensor exp_avg, exp_avg_sq;  // m and v, as Param::value
  };
  /// In the order of Params::all().
  const std::vector<Moments>& moments() const { return moments_; }
  /// Memory that the moments take.
  int64_t bytes() const;

  /// Steps skipped so far, f64 [1], for the log; a step overwrites it.
  Tensor skipped() const;
  /// Steps skipped without one applied since. On a GPU the first of them counts one step late, so that the host waits
  /// for the last step, which still runs, only while steps fail; from the second on the number is exact.
  int64_t skipped_in_a_row() const;

  // Reading the counts waits for the device.
  struct Counts {
    int64_t applied = 0, skipped = 0, skipped_in_a_row = 0;  // steps
  };
  Counts counts() const;
  void restore(const Counts& counts);

  const Params& params() const { return params_; }

 private:
  // The moments of one block of parameters, and which of them are updated alike.
  struct Block {
    Tensor exp_avg, exp_avg_sq;  // [used]
    Tensor ranges;               // adamw_ranges()
  };

  void sum_over_processes() const;

  Params params_;
  Mesh mesh_;
  AdamWOptions options_;
  std::vector<Block> blocks_;
  std::vector<Moments> moments_;
  Tensor controls_;  // f64 [AdamWControls::size]
  Later in_a_row_ = 0, in_a_row_before_ = 0;  // skipped, after the last step and after the one before
};

}  // namespace adder
