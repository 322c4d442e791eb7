// What a training will take, from its shape alone: nothing is allocated and nothing is run.
#pragma once

#include "adder/layers/activation_memory.h"

#include <string>

namespace adder {

/// Bytes as the memory pool hands them out; each step needs all of them together. The names are TrainingMemory's.
/// A step that is a CUDA graph (training_step.h) keeps what activations took to itself: a validation takes its own.
struct MemoryPlan {
  int64_t count = 0;                                 // of the parameters, not bytes
  int64_t parameters = 0, gradients = 0, moments = 0;  // parameters: with the rounded copies of a bf16 run
  int64_t activations = 0;
  int64_t total() const { return parameters + gradients + moments + activations; }
};
/// Within 10 % of memory/peak of a run of one process (tests/training_plan_test.cpp).
MemoryPlan planned_memory(const layers::LanguageModelOptions& model, const layers::MicroBatch& batch);

/// What of a device's FLOP/s a training of that width will make use of, between two measured widths by interpolation
/// and beyond them as at the nearer one: on a GPU of its peak, at 768 and 2048 (docs/performance.md); on the CPU of the
/// rate of large products, at 128 and 512.
double expected_utilisation(Device device, int64_t d_model);

struct TrainingPlan {
  layers::LanguageModelOptions model = {};
  layers::MicroBatch micro_batch = {};
  int64_t batch = 1, steps = 1;  // sequences a step; steps
  int64_t processes = 1;
  int64_t training_tokens = 0;   // of the corpus; 0: not known
  double peak = 0;               // FLOP/s of the device; 0: not known
  int64_t memory = 0;            // bytes of the device; 0: not known
  std::string device_name = {};
};
/// Parameters, memory, tokens, FLOPs and time, for a person to read; and if it needs more memory than there is, what to
/// change. On the CPU it measures the rate of a product, for a fifth of a second.
std::string describe(const TrainingPlan& plan);

}  // namespace adder
