#include "adder/core/cpu.h"

#include "adder/core/error.h"

namespace adder {

void check_processor() {
#if defined(__x86_64__)
  const char* missing = !__builtin_cpu_supports("avx2")   ? "AVX2"
                        : !__builtin_cpu_supports("fma")  ? "FMA"
                        : !__builtin_cpu_supports("bmi2") ? "BMI2"
                                                          : nullptr;
  if (missing)
    fail("this processor has no {}: adder's CPU kernels need x86-64-v3 (Intel Haswell, AMD Zen or newer)", missing);
#endif
}

}  // namespace adder
