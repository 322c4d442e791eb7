#include "adder/layers/generate.h"

#include "adder/core/error.h"

#include <algorithm>

namespace adder::layers {
namespace {

constexpr int64_t stretch = 4096;  // tokens that run through the model at once: bounds the memory a long prompt takes

// The logits of what follows the prompt, [batch, vocabulary].
Tensor prefill(const LanguageModel& model, const Tensor& prompt, LanguageModel::State& state) {
  Tensor logits;
  for (int64_t begin = 0; begin < prompt.size(1); begin += stretch)
    logits = model.prefill(contiguous(prompt.slice_last(begin, std::min(begin + stretch, prompt.size(1)))), state);
  return logits;
}

// One sequence: what of it may be penalised, and what was added.
struct Sequence {
  std::vector<int32_t> seen = {}, added = {};
  bool ended = false;

  void see(int32_t token, int32_t end) {
    if (token != end) seen.push_back(token);
  }
};

}  // namespace

std::vector<std::vector<int32_t>> generate(const LanguageModel& model, const Tensor& prompt,
                                           const GenerateOptions& options, const OnToken& on_token) {
  check(prompt.rank() == 2 && prompt.size(0) > 0 && prompt.size(1) > 0 && prompt.dtype() == DType::i32,
        "generate: a prompt {} of {} is not i32 [batch, time] of at least one token", to_string(prompt.shape()),
        name(prompt.dtype()));
  check(options.tokens >= 0, "generate: {} tokens are asked for", options.tokens);
  const int64_t batch = prompt.size(0), time = prompt.size(1), vocabulary = model.options.vocabulary;
  const Sampler sampler(options.sampler);
  const std::vector<double> given = to_host(prompt);
  std::vector<Sequence> sequences(static_cast<size_t>(batch));
  for (size_t i = 0; i < given.size(); ++i) {
    const auto token = static_cast<int32_t>(given[i]);
    // Beyond it the model's table has rows too: padding.
    check(token >= 0 && token < vocabulary, "generate: token {} is outside the vocabulary of {}", token, vocabulary);
    sequences[i / static_cast<size_t>(time)].see(token, options.end);
  }

  LanguageModel::State state = model.zero_state(batch);
  std::vector<int32_t> next(static_cast<size_t>(batch));
  for (int64_t i = 0; i < options.tokens; ++i) {
    const Tensor logits = i == 0 ? prefill(model, prompt, state)
                                 : model.step(from_host({batch}, next), state);
    const std::vector<double> rows = to_host(logits);
    for (int64_t s = 0; s < batch; ++s) {
      Sequence& sequence = sequences[static_cast<size_t>(s)];
      if (sequence.ended) continue;  // its row goes on with its last token, unheard
      const int32_t token = sampler(std::span(rows).subspan(static_cast<size_t>(s * vocabulary),
                                                            static_cast<size_t>(vocabulary)),
                                    s, time + i, sequence.seen);
      next[static_cast<size_t>(s)] = token;
      sequence.see(token, options.end);
      sequence.added.push_back(token);
      sequence.ended = token == options.end;
      if (on_token) on_token(s, token);
    }
    if (std::ranges::all_of(sequences, &Sequence::ended)) break;
  }
  std::vector<std::vector<int32_t>> added;
  for (Sequence& sequence : sequences) added.push_back(std::move(sequence.added));
  return added;
}

}  // namespace adder::layers
