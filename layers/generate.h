// Generation: a language model goes on from a prompt, a token at a time.
//
//   generate(model, from_host({1, time}, tokens), {.tokens = 200, .end = tokenizer.end_of_document()},
//            [&](int64_t, int32_t token) { print(token); });
//
// The prompt runs through the model at once (prefill); each later token costs one step from the state, the same at any
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

/// Told each new token as soon as it is drawn: the sequence (row of the prompt) and the token, the last `end` included.
using OnToken = std::function<void(int64_t sequence, int32_t token)>;

/// The new tokens of each sequence. prompt: i32 [batch, time], time >= 1; sequences may end at different lengths.
/// A token is drawn for its position in the whole sequence, so going on from a longer prompt of the same text draws the
/// same numbers, and a run repeats. Not recorded. Throws what the model and the sampler throw.
std::vector<std::vector<int32_t>> generate(const LanguageModel& model, const Tensor& prompt,
                                           const GenerateOptions& options = {}, const OnToken& on_token = {});

}  // namespace adder::layers
