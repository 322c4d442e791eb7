// TrainingStep: forward, backward and update, of all micro-batches of a step.
//
//   TrainingStep step(model, optimizer, run.mesh(), {.clip = 1});
//   while (...) {
//     const auto [loss, norm] = step(data.next(), learning_rate);
//   }
//
// is, and has the bits of,
//
//   while (...) {
//     Tensor loss = zeros({1}, DType::f32, model.device());
//     for (const Batch& batch : data.next()) loss += backward(model.loss(batch));
//     run.mesh().data.all_reduce(loss);
//     const Tensor norm = optimizer.step(learning_rate, {.clip = 1});
//   }
//
// but on a GPU all kernels of a step can be one CUDA graph (core/captured.h) from the second step on. A small model's
// kernels end sooner than the host queues them one by one; a graph is queued at once. The batches lie in tensors of
// their own, so every step must have as many of the same shapes. What the graph writes to is set apart: blocks that the
// step before it had left in the pool, whose `reserved` does not grow, but a validation has to take others.
#pragma once

#include "adder/core/captured.h"
#include "adder/layers/language_model.h"
#include "adder/optim/adamw.h"

#include <functional>
#include <span>
#include <string>
#include <vector>

namespace adder {

/// Whether a GPU ends with a micro-batch of so many tokens before the host has queued its kernels: then a graph pays.
/// A function of shape alone.
bool launch_bound(int64_t tokens, int64_t d_model);

/// What TrainingStepOptions::graph may be.
inline const std::vector<std::string> graph_choices = {"auto", "on", "off"};

struct TrainingStepOptions {
  double clip = 1;             // as StepOptions
  std::string graph = "auto";  // a CUDA graph: "auto" if it pays, on a GPU and in one process. It changes no bit
};

class TrainingStep {
 public:
  struct Result {
    Tensor loss;  // [1]: the mean over the step's targets, on all processes
    Tensor norm;  // f64 [1]: of the gradients, before clipping
  };

  /// Refers to model and optimizer. Throws if a graph is asked for where there is none: on the CPU, or in one of
  /// several processes, whose sums over all of them are not recorded.
  TrainingStep(const layers::LanguageModel& model, AdamW& optimizer, const Mesh& mesh,
               const TrainingStepOptions& options = {});
  TrainingStep(const TrainingStep&) = delete;
  TrainingStep& operator=(const TrainingStep&) = delete;

  /// One step with this process's micro-batches, from any device. The gradients are its own: those collected before are
  /// dropped. Does not wait for the GPU; the next step overwrites the result.
  Result operator()(std::span<const Batch> micro_batches, double learning_rate);

  /// Whether steps replay a CUDA graph by now.
  bool is_graph() const { return step_.is_graph(); }
  /// Why they do not, though they should; empty otherwise.
  std::string refused() const { return wanted_ ? step_.eager_because() : ""; }

 private:
  void take(std::span<const Batch> micro_batches);

  const layers::LanguageModel& model_;
  AdamW& optimizer_;
  Mesh mesh_;
  TrainingStepOptions options_;
  bool wanted_ = false;         // a graph
  std::vector<Batch> batches_;  // at fixed addresses
  Captured<std::function<Result()>> step_;
};

}  // namespace adder
