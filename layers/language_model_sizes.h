// Sizes of Mamba-2 language models by name: those that Dao & Gu 2024 released (N 128, P 64, one group, expand 2, the
// GPT-NeoX vocabulary), and smaller ones to try things on.
#pragma once

#include "adder/core/error.h"
#include "adder/layers/language_model.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace adder::layers {

struct LanguageModelSize {
  std::string_view name;
  int64_t layers, d_model, d_state, head_dim;
  int64_t vocabulary;    // 0: any
  double learning_rate;  // that trains it, at its peak: of the released ones five times that of GPT-3
};

inline constexpr LanguageModelSize language_model_sizes[] = {
    {"tiny", 2, 64, 16, 16, 0, 1e-2},
    {"small", 4, 128, 32, 32, 0, 1e-2},
    {"base", 12, 768, 128, 64, 0, 1.5e-3},
    {"130m", 24, 768, 128, 64, 50277, 3e-3},
    {"370m", 48, 1024, 128, 64, 50277, 1.5e-3},
    {"780m", 48, 1536, 128, 64, 50277, 1.25e-3},
    {"1.3b", 48, 2048, 128, 64, 50277, 1e-3},
    {"2.7b", 64, 2560, 128, 64, 50277, 8e-4}};

inline std::vector<std::string> size_names() {
  std::vector<std::string> names;
  for (const LanguageModelSize& size : language_model_sizes) names.emplace_back(size.name);
  return names;
}

/// Gives the model that size, and returns it; what it does not say stays. Throws if there is none of that name.
inline const LanguageModelSize& set_size(LanguageModelOptions& o, std::string_view name) {
  const auto* const size = std::ranges::find(language_model_sizes, name, &LanguageModelSize::name);
  check(size != std::end(language_model_sizes), "LanguageModel: there is no size {}", name);
  o.layers = size->layers;
  o.mixer.d_model = size->d_model;
  o.mixer.d_state = size->d_state;
  o.mixer.head_dim = size->head_dim;
  if (size->vocabulary > 0) {
    o.vocabulary = size->vocabulary;
    o.pad_vocabulary = 16;  // 50288 rows
  }
  return *size;
}

}  // namespace adder::layers
