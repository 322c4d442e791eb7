// What the memory of a training run goes to.
#pragma once

#include "adder/distributed/run.h"
#include "adder/optim/adamw.h"

namespace adder {

/// For Run::log(), in GiB: memory/parameters (with their rounded copies), memory/gradients, memory/moments,
/// memory/activations (the peak so far, less those three: what the tape held, and scratch), memory/peak (their sum) and
/// memory/reserved (taken from the system).
std::vector<Logged> training_memory(const Params& params, const AdamW& optimizer);

}  // namespace adder
