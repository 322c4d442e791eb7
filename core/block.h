// The memory that pools are made of.
#pragma once

#include "adder/core/device.h"

#include <cstdint>

namespace adder {

/// A block, or null if there is no memory left. On the GPU it is there for work on the compute stream.
void* take_block(Cpu, int64_t bytes);
void* take_block(Cuda on, int64_t bytes);
void give_back_block(Cpu, void* block);
void give_back_block(Cuda on, void* block);

}  // namespace adder
