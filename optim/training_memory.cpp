#include "adder/optim/training_memory.h"

namespace adder {

TrainingMemory::TrainingMemory(const Params& params, const AdamW& optimizer)
    : device_(params.device()), moments_(optimizer.bytes()), before_(memory_use(device_).in_use) {
  const auto bytes = [](const Tensor& t) { return t ? t.count() * size_of(t.dtype()) : 0; };
  for (const ParamBlock& block : params.blocks()) {
    parameters_ += bytes(block.values) + bytes(block.rounded);
    gradients_ += bytes(block.gradients);
  }
  reset_peak(device_);
}

std::vector<Logged> TrainingMemory::parts() const {
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const MemoryUse use = memory_use(device_);
  return {{"memory/parameters", gib(parameters_)},
          {"memory/gradients", gib(gradients_)},
          {"memory/moments", gib(moments_)},
          {"memory/other", gib(before_ - parameters_ - gradients_ - moments_)},
          {"memory/activations", gib(use.peak - before_)},
          {"memory/peak", gib(use.peak)},
          {"memory/reserved", gib(use.reserved)}};
}

}  // namespace adder
