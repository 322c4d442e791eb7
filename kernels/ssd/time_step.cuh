// From dt to Δ and a, and back, as every kernel of SSD on the GPU computes them.
#pragma once

#include "adder/core/elements.cuh"

namespace adder::ssd {

/// log(1 + e^x), exact to rounding at both ends; NaN stays NaN.
__device__ inline float softplus(float x) { return (x > 0 ? x : 0.0f) + log1pf(expf(-fabsf(x))); }

/// Δ = clamp(softplus(raw)) with raw = dt + dt_bias.
struct TimeStep {
  bool softplus;
  float least, most;

  TimeStep(bool softplus_, double dt_min, double dt_max)
      : softplus(softplus_), least(static_cast<float>(dt_min)), most(static_cast<float>(dt_max)) {}
  __device__ float free(float raw) const { return softplus ? ssd::softplus(raw) : raw; }
  __device__ float operator()(float raw) const {
    const float d = free(raw);
    return d < least ? least : d > most ? most : d;  // NaN stays
  }
  /// dΔ / draw.
  __device__ float slope(float raw) const {
    const float d = free(raw);
    if (d < least || d > most) return 0;
    return softplus ? 1.0f / (1.0f + expf(-raw)) : 1.0f;
  }
};

/// a = Δ A is cut here before it is summed: its gradient is then 0.
inline constexpr float least_log_decay = -40;
__device__ inline bool is_cut(float delta, float A) { return delta * A < least_log_decay; }
__device__ inline float log_decay(float delta, float A) { return is_cut(delta, A) ? least_log_decay : delta * A; }

}  // namespace adder::ssd
