// The most FLOP/s that a GPU's maker gives for it.
#pragma once

#include "adder/core/dtype.h"

#include <string_view>

namespace adder {

/// FLOP/s of dense products of a GPU of that name (gpu_name()) in bf16 with f32 sums, or in f32, rounded to TF32 or
/// not; 0: not known, as of a part of one (MIG). --peak says it for others.
double peak_flops(std::string_view gpu, DType type, bool tf32 = false);

}  // namespace adder
