// The time step of a token and head, on the GPU.
#pragma once

#include "adder/core/elements.cuh"
#include "adder/kernels/math.cuh"
#include "adder/kernels/ssd/ssd.h"

namespace adder::ssd {

/// a_t below this is cut.
inline constexpr float least_log_decay = -40;

/// Δ from dt + dt_bias.
struct TimeStep {
  bool softplus;
  float least, most;

  template <class Op>
  explicit TimeStep(const Op& op)
      : softplus(op.softplus), least(static_cast<float>(op.dt_min)), most(static_cast<float>(op.dt_max)) {}

  __device__ float free(float raw) const {
    return softplus ? log1pf(expf(-fabsf(raw))) + (raw > 0 ? raw : 0.0f) : raw;
  }
  __device__ float operator()(float raw) const {
    const float d = free(raw);
    return d < least ? least : d > most ? most : d;  // NaN stays
  }
  /// The gradient of raw from that of Δ.
  __device__ float gradient(float raw, float d) const {
    const float delta = free(raw);
    if (delta < least || delta > most) return 0;
    return softplus ? d * math::sigmoid(raw) : d;
  }
};

/// e^{a_t}
__device__ inline float decay_of(float delta, float A) {
  const float a = delta * A;
  return expf(a < least_log_decay ? least_log_decay : a);  // NaN stays
}

}  // namespace adder::ssd
