#include "adder/optim/training_memory.h"

namespace adder {

std::vector<Logged> training_memory(const Params& params, const AdamW& optimizer) {
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const auto bytes = [](const Tensor& t) { return t ? t.count() * size_of(t.dtype()) : 0; };
  int64_t parameters = 0, gradients = 0;
  for (const ParamBlock& block : params.blocks()) {
    parameters += bytes(block.values) + bytes(block.rounded);
    gradients += bytes(block.gradients);
  }
  const MemoryUse use = memory_use(params.device());
  const int64_t moments = optimizer.bytes();
  return {{"memory/parameters", gib(parameters)}, {"memory/gradients", gib(gradients)},
          {"memory/moments", gib(moments)}, {"memory/activations", gib(use.peak - parameters - gradients - moments)},
          {"memory/peak", gib(use.peak)}, {"memory/reserved", gib(use.reserved)}};
}

}  // namespace adder
