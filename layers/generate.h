// Generation: a language model goes on from prompts, a token at a time.
//
//   generate(model, {tokens}, {.tokens = 200, .end = tokenizer.end_of_document()},
//            [&](int64_t, int32_t token) { print(token); });
//
// The prompts run through the model at once (prefill); each later token costs one step from the state, the same at any
// length. A document's first input is the end-of-document token, so a prompt begins with it.
#pragma once

#include "adder/layers/language_model.h"
#include "adder/layers/sampler.h"

#include <functional>
#include <vector>

namespace adder::layers {

struct GenerateOptions {
  int64_t tokens = 256;         // new tokens of each sequence, at most
  int32_t end = -1;             // a sequence ends with this token, which is never penalised as seen; -1: none does
  SamplerOptions sampler = {};
};

/// Told each new token as soon as it is drawn: the sequence (number of the prompt) and the token, the last `end`
/// included.
using OnToken = std::function<void(int64_t sequence, int32_t token)>;
/// Sequences of tokens, of any lengths.
using Texts = std::vector<std::vector<int32_t>>;

/// The new tokens of each sequence. Prompts have a token at least; they need not be equally long, and the text of each
/// is what it would be alone, but for rounding. Sequences may end at different lengths.
/// A token is drawn for its position in the whole sequence, so going on from a longer prompt of the same text draws the
/// same numbers, and a run repeats. Not recorded. Throws what the model and the sampler throw.
Texts generate(const LanguageModel& model, const Texts& prompts, const GenerateOptions& options = {},
               const OnToken& on_token = {});
/// The same from prompts of one length, i32 [batch, time].
Texts generate(const LanguageModel& model, const Tensor& prompt, const GenerateOptions& options = {},
               const OnToken& on_token = {});

/// What a state and the logits of what follows are after prompts.
struct Prefilled {
  LanguageModel::State state;
  Tensor logits;  // [batch, vocabulary]
};
/// Prompts shorter than the longest are preceded by tokens of another document, which leave nothing in the state. Long
/// prompts go through the model in stretches, so that they take little memory.
Prefilled prefill(const LanguageModel& model, const Texts& prompts);

}  // namespace adder::layers
