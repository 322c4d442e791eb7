// What the memory of a training run goes to.
#pragma once

#include "adder/distributed/run.h"
#include "adder/optim/adamw.h"

namespace adder {

/// The memory of a step: made before it and asked after it, which a GPU need not have reached yet.
class TrainingMemory {
 public:
  /// Lets the peak of the pool start again.
  TrainingMemory(const Params& params, const AdamW& optimizer);
  /// For Run::log(), in GiB: memory/parameters (with their rounded copies), memory/gradients, memory/moments,
  /// memory/other (what else the pool held before the step, and the up to 12.5 % by which it makes blocks larger),
  /// memory/activations (the peak beyond those: what the tape held, scratch, workspaces), memory/peak (their sum) and
  /// memory/reserved: what the pool took from the system, so without the driver's context, the code of kernels and what
  /// libraries take for themselves.
  std::vector<Logged> parts() const;

 private:
  Device device_;
  int64_t parameters_ = 0, gradients_ = 0, moments_, before_;  // bytes
};

}  // namespace adder
