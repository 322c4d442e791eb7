// The flags of a language model, shared by the recipes that train one and those that use a trained one.
#pragma once

#include "adder/distributed/flags.h"
#include "adder/layers/language_model.h"

#include <string>
#include <string_view>
#include <vector>

namespace adder {

/// What the options hold is the flags' default.
inline void add_model_flags(Flags& flags, layers::LanguageModelOptions& o) {
  flags.group("Model");
  flags.add("d-model", o.mixer.d_model, "width of the residual stream", {.min = 1});
  flags.add("layers", o.layers, "Mamba-2 blocks", {.min = 1});
  flags.add("d-state", o.mixer.d_state, "size of the state of a channel, N", {.min = 1});
  flags.add("head-dim", o.mixer.head_dim, "channels of a head, P; divides expand * d-model", {.min = 1});
  flags.add("groups", o.mixer.groups, "heads share B and C in so many groups", {.min = 1});
  flags.add("expand", o.mixer.expand, "channels inside a block over d-model", {.min = 1});
  flags.add("d-conv", o.mixer.d_conv, "width of the causal convolution", {.min = 1});
  flags.add("d-intermediate", o.d_intermediate, "width of a gated MLP after each block, 0: none", {.min = 0});
}

/// The model that a run's saved flags (data/saved_run.h) describe; what was not saved is as in `defaults`.
inline layers::LanguageModelOptions saved_model(std::string_view saved_flags,
                                                const layers::LanguageModelOptions& defaults = {}) {
  layers::LanguageModelOptions o = defaults;
  Flags flags("");
  add_model_flags(flags, o);
  std::vector<std::string> words{"run.json"};
  for (const FlagDifference& d : flags.differences(saved_flags)) words.push_back("--" + d.name + "=" + d.saved);
  std::vector<const char*> line;
  for (const std::string& word : words) line.push_back(word.c_str());
  flags.parse(static_cast<int>(line.size()), line.data());
  return o;
}

}  // namespace adder
