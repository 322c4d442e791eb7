#include "adder/layers/generate.h"

#include "adder/core/error.h"
#include "adder/core/later.h"
#include "adder/layers/decoder.h"

#include <algorithm>
#include <exception>

namespace adder::layers {
namespace {

constexpr int64_t stretch = 4096;  // tokens that run through the model at once

// One sequence: what of it may be penalised, what was added, and the position of the next token.
struct Sequence {
  std::vector<int32_t> seen = {}, added = {};
  int64_t position = 0;
  bool ended = false;

  void see(int32_t token, int32_t end) {
    if (token != end) seen.push_back(token);
    ++position;
  }
};

void check_prompts(const LanguageModel& model, const Texts& prompts) {
  check(!prompts.empty(), "generate: there are no prompts");
  const int64_t vocabulary = model.options.vocabulary;
  for (const auto& prompt : prompts) {
    check(!prompt.empty(), "generate: a prompt needs at least one token");
    for (const int32_t token : prompt)  // beyond it the model's table has rows too: padding
      check(token >= 0 && token < vocabulary, "generate: token {} is outside the vocabulary of {}", token, vocabulary);
  }
}

// All sequences, and what is done with their new tokens.
struct Sequences {
  const GenerateOptions& options;
  const OnToken& on_token;
  std::vector<Sequence> list;

  Sequences(const Texts& prompts, const GenerateOptions& o, const OnToken& f)
      : options(o), on_token(f), list(prompts.size()) {
    for (size_t s = 0; s < prompts.size(); ++s)
      for (const int32_t token : prompts[s]) list[s].see(token, o.end);
  }
  // The next token of every sequence; those of sequences that ended are not heard.
  void hear(std::span<const int32_t> tokens) {
    for (size_t s = 0; s < list.size(); ++s) {
      Sequence& sequence = list[s];
      if (sequence.ended) continue;
      sequence.see(tokens[s], options.end);
      sequence.added.push_back(tokens[s]);
      sequence.ended = tokens[s] == options.end;
      if (on_token) on_token(static_cast<int64_t>(s), tokens[s]);
    }
  }
  bool all_ended() const { return std::ranges::all_of(list, &Sequence::ended); }
};

// What the sampler would say.
void check_chosen(int32_t token) {
  check(token != -1, "generate: no logit is finite");
  check(token >= 0, "generate: the logit of token {} is NaN or infinity", -2 - token);
}

// The most probable text: the device chooses. The host reads a token while a GPU is busy with the next one already.
void write_greedily(Decoder& decoder, Sequences& sequences) {
  const bool ahead = decoder.token().device() == Device::cuda;
  const auto advance = [&] {
    decoder.step();
    return later(decoder.token());
  };
  std::function<Tensor()> next = later(decoder.token()), after;
  for (int64_t left = sequences.options.tokens; left > 0 && !sequences.all_ended(); --left) {
    if (ahead && left > 1) after = advance();
    const Tensor tokens = next();
    const std::span<const int32_t> chosen(tokens.data<int32_t>(), sequences.list.size());
    for (size_t s = 0; s < chosen.size(); ++s)
      if (!sequences.list[s].ended) check_chosen(chosen[s]);
    sequences.hear(chosen);
    if (left == 1 || sequences.all_ended()) return;
    next = ahead ? std::move(after) : advance();
  }
}

// The next token of each sequence; a row of one that ended goes on with its last token.
void draw(const Sampler& sampler, const Tensor& logits, const Sequences& sequences, std::vector<int32_t>& tokens) {
  std::exception_ptr fault;  // none may leave a parallel loop
#pragma omp parallel for schedule(dynamic) if (tokens.size() > 1)
  for (size_t s = 0; s < tokens.size(); ++s) {
    const Sequence& sequence = sequences.list[s];
    if (sequence.ended) continue;
    try {
      const auto row = static_cast<int64_t>(s);
      tokens[s] = sampler.draw(logits.slice_first(row, row + 1), row, sequence.position, sequence.seen);
    } catch (...) {
#pragma omp critical
      fault = std::current_exception();
    }
  }
  if (fault) std::rethrow_exception(fault);
}

// The sampler chooses, on the host.
void write(Decoder& decoder, Sequences& sequences) {
  const Sampler sampler(sequences.options.sampler);
  std::vector<int32_t> chosen(sequences.list.size());
  for (int64_t left = sequences.options.tokens; left > 0 && !sequences.all_ended(); --left) {
    draw(sampler, to_device(decoder.logits(), Device::cpu), sequences, chosen);
    sequences.hear(chosen);
    if (left == 1 || sequences.all_ended()) return;
    decoder.choose(chosen);
    decoder.step();
  }
}

}  // namespace

Prefilled prefill(const LanguageModel& model, const Texts& prompts) {
  check_prompts(model, prompts);
  const auto batch = static_cast<int64_t>(prompts.size());
  const auto length = [](const auto& prompt) { return static_cast<int64_t>(prompt.size()); };
  const int64_t time = length(*std::ranges::max_element(prompts, {}, length));
  const bool equal = std::ranges::all_of(prompts, [&](const auto& prompt) { return length(prompt) == time; });
  Prefilled result{.state = model.zero_state(batch), .logits = {}};
  for (int64_t begin = 0; begin < time; begin += stretch) {
    const int64_t end = std::min(begin + stretch, time);
    const Tensor tokens = zeros({batch, end - begin}, DType::i32), document = zeros({batch, end - begin}, DType::i32);
    for (int64_t b = 0; b < batch; ++b) {
      const auto& prompt = prompts[static_cast<size_t>(b)];
      const int64_t padding = time - length(prompt), first = std::clamp(padding, begin, end);
      std::copy_n(prompt.begin() + std::max<int64_t>(0, begin - padding), end - first,
                  tokens.data<int32_t>() + b * (end - begin) + (first - begin));
      std::fill_n(document.data<int32_t>() + b * (end - begin) + (first - begin), end - first, 1);
      if (padding == begin && begin > 0)  // the state, the padding's, would count as the prompt's
        for (const Mamba2State& state : result.state)
          for (const Tensor& t : {state.conv, state.ssm}) fill(t.slice_first(b, b + 1), 0);
    }
    result.logits = model.prefill(tokens, result.state, equal ? Tensor() : document);
  }
  return result;
}

Texts generate(const LanguageModel& model, const Texts& prompts, const GenerateOptions& options,
               const OnToken& on_token) {
  check_prompts(model, prompts);
  check(options.tokens >= 0, "generate: {} tokens are asked for", options.tokens);
  options.sampler.validate();
  Sequences sequences(prompts, options, on_token);
  if (options.tokens > 0) {
    Prefilled start = prefill(model, prompts);
    Decoder decoder(model, std::move(start.state), start.logits);
    const bool greedy = options.sampler.temperature == 0 && options.sampler.repetition_penalty == 1;
    if (greedy) write_greedily(decoder, sequences);
    else write(decoder, sequences);
  }
  Texts added;
  for (Sequence& sequence : sequences.list) added.push_back(std::move(sequence.added));
  return added;
}

Texts generate(const LanguageModel& model, const Tensor& prompt, const GenerateOptions& options,
               const OnToken& on_token) {
  check(prompt.rank() == 2 && prompt.size(0) > 0 && prompt.size(1) > 0 && prompt.dtype() == DType::i32,
        "generate: a prompt {} of {} is not i32 [batch, time] of at least one token", to_string(prompt.shape()),
        name(prompt.dtype()));
  const Tensor host = contiguous(to_device(prompt, Device::cpu));
  Texts prompts;
  for (int64_t b = 0; b < host.size(0); ++b) {
    const int32_t* const row = host.data<int32_t>() + b * host.size(1);
    prompts.emplace_back(row, row + host.size(1));
  }
  return generate(model, prompts, options, on_token);
}

}  // namespace adder::layers
