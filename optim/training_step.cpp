#include "adder/optim/training_step.h"

#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/accumulate.h"

#include <algorithm>

namespace adder {

// To queue a step of 130m took the host 9.8 ms, 0.4 ms a layer. The GPU takes 1.2e-10 s for each token and channel of
// d_model: 144 of 179 ms of a step of 32 x 2048 tokens are the 24 layers' (docs/performance.md). Both are even at 3 M;
// a faster host queues in half the time.
bool launch_bound(int64_t tokens, int64_t d_model) { return tokens * d_model <= int64_t{1} << 21; }

TrainingStep::TrainingStep(const layers::LanguageModel& model, AdamW& optimizer, const Mesh& mesh,
                           const TrainingStepOptions& options)
    : model_(model), optimizer_(optimizer), mesh_(mesh), options_(options), step_(model.device(), [this] {
        optimizer_.params().clear_gradients();  // also those of a recording that was given up half-way
        Tensor loss = zeros({1}, optimizer_.params().dtype(), model_.device());
        for (const Batch& batch : batches_) loss += backward(model_.loss(batch));
        mesh_.data.all_reduce(loss);
        return Result{.loss = loss, .norm = optimizer_.update()};
      }) {
  check(std::ranges::find(graph_choices, options.graph) != graph_choices.end(),
        "TrainingStep: graph {} is neither auto nor on nor off", options.graph);
  check(options.graph != "on" || (model.device() == Device::cuda && mesh.world.size() == 1),
        "TrainingStep: a step can be a CUDA graph in one process on a GPU, not in {} on the {}", mesh.world.size(),
        model.device() == Device::cuda ? "GPU" : "CPU");
}

// Into the same tensors each time: a graph reads no others.
void TrainingStep::take(std::span<const Batch> micro_batches) {
  check(!micro_batches.empty(), "TrainingStep: a step of no micro-batch");
  if (batches_.empty()) {
    for (const Batch& batch : micro_batches) batches_.push_back(empty_like(batch, model_.device()));
    const int64_t tokens = batches_[0].tokens.count(), width = model_.options.mixer.d_model;
    wanted_ = options_.graph == "on" || (options_.graph == "auto" && model_.device() == Device::cuda &&
                                         mesh_.world.size() == 1 && launch_bound(tokens, width));
    if (!wanted_) step_.stay_eager("it does not pay");
  }
  check(micro_batches.size() == batches_.size(), "TrainingStep: {} micro-batches after {}", micro_batches.size(),
        batches_.size());
  for (size_t i = 0; i < batches_.size(); ++i) copy(micro_batches[i], batches_[i]);
}

TrainingStep::Result TrainingStep::operator()(std::span<const Batch> micro_batches, double learning_rate) {
  take(micro_batches);
  optimizer_.prepare(learning_rate, {.clip = options_.clip});
  const Result result = step_();
  optimizer_.params().clear_gradients();  // as update() does, but not in a replay
  optimizer_.watch();
  return result;
}

}  // namespace adder
