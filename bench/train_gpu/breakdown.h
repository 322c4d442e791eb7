// Where the milliseconds of a training step go, beside the least that they could be.
#pragma once

#include "adder/bench/costs.h"
#include "adder/bench/train_gpu/kernel_times.h"
#include "adder/layers/language_model.h"

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace adder {

/// What the kernels of one family did in some steps.
struct Share {
  int64_t launches = 0;
  double milliseconds = 0;
};

/// By family (families.h). Where two activities overlap, the time counts for the one that began first, so that all
/// shares add to the time in which the GPU did anything. Only the mixers' products are told from one another, by the
/// kernels beside them, and only if `plain`: no MLP, and a norm before out_proj; else they are the blocks' products.
std::map<std::string, Share> shares(const std::vector<Activity>& activities, bool plain);

struct StepSizes {
  double tokens, parameters;
  bool bf16;
};
/// The least work of a step by family, everything once: what recompute makes again is above it.
std::map<std::string_view, Cost> step_costs(const layers::LanguageModelOptions& model, const StepSizes& step);

/// Steps that were watched.
struct Watched {
  std::vector<Activity> activities;
  int64_t steps;
  double step_ms;  // that one takes when nobody looks
  bool plain;
};
/// A markdown table of them; `floor` is the time in milliseconds that a cost takes at least.
std::string breakdown(const Watched& watched, const std::map<std::string_view, Cost>& costs,
                      const std::function<double(const Cost&)>& floor);

}  // namespace adder
