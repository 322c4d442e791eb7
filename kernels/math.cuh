// Elementary functions on the GPU, in float. NaN stays NaN; at +-inf each takes its limit. The contracts are those of
// kernels/vector_math.h, with some 4 ulp.
#pragma once

namespace adder::math {

/// 1 / x, within 1 ulp: division would take more time than the memory of the kernels here. 0 where it is below 2^-126,
/// which spares four instructions.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / (1 + exp(-x))
__device__ inline float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

/// x sigmoid(x)
__device__ inline float silu(float x) {
  const float bounded = x < -128.0f ? -128.0f : x;  // beyond it the result is -0
  return bounded * sigmoid(bounded);
}

/// sigmoid(x) (1 + x (1 - sigmoid(x)))
__device__ inline float silu_gradient(float x) {
  float bounded = x < -128.0f ? -128.0f : x;
  bounded = bounded > 128.0f ? 128.0f : bounded;
  const float s = sigmoid(bounded);
  return s * (1.0f + bounded * (1.0f - s));
}

/// silu(x) and silu_gradient(x) from one exponential.
struct Gate {
  float value, slope;
};
__device__ inline Gate open_gate(float x) {
  const float s = sigmoid(x), above = x < -128.0f ? -128.0f : x, inside = above > 128.0f ? 128.0f : above;
  return {above * s, s * (1.0f + inside * (1.0f - s))};
}

}  // namespace adder::math
