#include "adder/optim/schedule.h"

#include "adder/core/error.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace adder {

double Schedule::operator()(int64_t step) const {
  if (step < warmup_steps) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  if (kind == Kind::constant) return peak;
  step = std::min(step, steps - 1);
  const int64_t start = kind == Kind::wsd ? steps - decay_steps : warmup_steps;  // of the decay
  const int64_t length = std::max<int64_t>(1, steps - start);
  const double u = std::clamp(static_cast<double>(step + 1 - start) / static_cast<double>(length), 0.0, 1.0);
  if (kind == Kind::cosine) return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * u));
  return peak + (floor - peak) * u;
}

void Schedule::validate() const {
  check(0 <= floor && floor <= peak && std::isfinite(peak),
        "schedule: a rate that ends at {}, which is not from 0 to its peak of {}", floor, peak);
  check(warmup_steps >= 0, "schedule: {} warm-up steps", warmup_steps);
  if (kind == Kind::constant) return;
  const int64_t decay = kind == Kind::wsd ? decay_steps : 0;
  check(decay >= 0, "schedule: {} decay steps", decay);
  check(warmup_steps + decay <= steps, "schedule: {} warm-up steps and {} decay steps do not fit into {} steps",
        warmup_steps, decay, steps);
}

const char* name(Schedule::Kind kind) {
  switch (kind) {
    using enum Schedule::Kind;
    case cosine: return "cosine";
    case linear: return "linear";
    case constant: return "constant";
    case wsd: break;
  }
  return "wsd";
}

Schedule::Kind schedule_kind(std::string_view text) {
  using enum Schedule::Kind;
  for (const auto kind : {cosine, linear, constant, wsd})
    if (text == name(kind)) return kind;
  fail("schedule: \"{}\" is none of cosine, linear, constant, wsd", text);
}

}  // namespace adder
