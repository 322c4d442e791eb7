// Learning rates as a function of the step.
//
// With t = warmup_steps, T = steps (counted from 0, so the last step is T - 1) and D = decay_steps:
//   warm-up   peak (step + 1) / t for step < t: the first step already learns, and step t - 1 has the peak
//   cosine    floor + (peak - floor) (1 + cos(π u)) / 2,  u = (step + 1 - t) / (T - t): the floor at step T - 1
//   linear    peak + (floor - peak) u
//   constant  peak
//   wsd       warm-up, stable, decay: peak, then over the last D steps linearly to the floor at step T - 1
//             (Hu et al., "MiniCPM", 2024; linear as in Hägele et al. 2024)
// Past the end the last value holds. Mamba trains with cosine, a warm-up of a tenth of the steps and a floor of 1e-5.
#pragma once

#include <cstdint>
#include <string_view>

namespace adder {

struct Schedule {
  enum class Kind { cosine, linear, constant, wsd };

  Kind kind = Kind::cosine;
  double peak = 1e-3;
  double floor = 1e-5;       // where cosine, linear and wsd end; an absolute rate
  int64_t warmup_steps = 0;
  int64_t steps = 0;         // of the whole run, warm-up included; the constant schedule does not read it
  int64_t decay_steps = 0;   // wsd only
  double operator()(int64_t step) const;

  /// Throws, naming the field, unless 0 <= floor <= peak and warm-up and decay fit into the steps.
  void validate() const;
};

/// "cosine", "linear", "constant" or "wsd", as flags say it; throws for another, listing them.
Schedule::Kind schedule_kind(std::string_view name);
const char* name(Schedule::Kind kind);

}  // namespace adder
