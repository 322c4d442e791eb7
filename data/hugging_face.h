// Mamba-2 language models as they are shared: a folder of config.json and model.safetensors, in one of two forms.
//
//   transformers   `Mamba2ForCausalLM` of Hugging Face transformers
//   state_spaces   `MambaLMHeadModel` of the authors' code, github.com/state-spaces/mamba
//
//   const auto options = hugging_face::read_options(folder);
//   Params params(run.device());
//   const layers::LanguageModel model(params, run.mesh(), options);
//   hugging_face::read_weights(folder, params, model);
//
// The rows of in_proj are [z, x, B, C, dt] in both and in ours; conv1d.weight is [channel, 1, width] there.
//
// The gated norm runs over each group of B and C by itself in the authors' code and, since 5.23, in transformers, whose
// torch code took all channels together until then, whatever n_groups. No field says which, so the version that wrote
// config.json does: norm_groups is n_groups if `transformers_version` is 5.23 or later, and 1 if it is earlier or not
// there. Weights that the authors' code trained and an older transformers saved want their groups back:
// `options.mixer.norm_groups = options.mixer.groups`.
//
// Dropout, recompute and initial values are not part of a shared model. The residual stream is fp32 here, as
// residual_in_fp32 asks for.
#pragma once

#include "adder/layers/language_model.h"

#include <string>

namespace adder::hugging_face {

enum class Form : unsigned char { transformers, state_spaces };

/// The model that FOLDER/config.json describes, in either form. Throws, naming the field, what cannot be built here:
/// another activation, attention layers, Mamba-1, sizes that do not fit together.
layers::LanguageModelOptions read_options(const std::string& folder);

/// Fills the model's parameters, of which `params` is the arena, from FOLDER/model.safetensors, or from the files that
/// model.safetensors.index.json names. Throws, naming it, if a tensor is missing, left over or of another shape. A tied
/// model's lm_head.weight may be there if it is the embedding.
void read_weights(const std::string& folder, const Params& params, const layers::LanguageModel& model);

/// Writes both files, the masters of the parameters; reading them gives the same bits. The folder may not hold a model
/// yet. Throws, naming the option, what the form cannot say. transformers gets the vocabulary without its padding, and
/// a version: 5.23.0, or 5.22.2 for norm_groups 1 with several groups, which transformers computes before 5.23 only.
void write(const std::string& folder, const Params& params, const layers::LanguageModel& model, Form form);

// The parts of the above.

/// The text of config.json.
std::string config(const layers::LanguageModelOptions& options, Form form);
/// The model that the text describes; errors name `where`.
layers::LanguageModelOptions parse_config(const std::string& text, const std::string& where);

}  // namespace adder::hugging_face
