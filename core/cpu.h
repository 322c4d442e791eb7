// The processor adder's CPU kernels are compiled for.
#pragma once

namespace adder {

/// Throws unless the processor can run the CPU kernels: on x86 they use AVX2, FMA and BMI2 (x86-64-v3). To be called
/// before the first kernel: one sentence in place of an illegal instruction. Elsewhere it does nothing.
void check_processor();

}  // namespace adder
