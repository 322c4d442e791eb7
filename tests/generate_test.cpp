#include "adder/autograd/gradient_check.h"
#include "adder/core/error.h"
#include "adder/layers/decoder.h"
#include "adder/layers/generate.h"

#include "catch.h"

#include <algorithm>
#include <cmath>
#include <set>

using namespace adder;
using layers::generate;
using layers::LanguageModel;

namespace {

// In f64, where prefill and step differ by so little that no draw is changed.
struct Tiny {
  Params params{Device::cpu, {.seed = 3, .dtype = DType::f64}};
  LanguageModel model{params, Mesh{}, {.vocabulary = 11, .pad_vocabulary = 8, .layers = 2,
                      .mixer = {.d_model = 8, .d_state = 3, .head_dim = 4, .A_min = 0.1, .A_max = 1,
                                .dt_init_min = 0.5, .dt_init_max = 2, .chunk = 4}}};
  Tiny() {
    const Random random(7, "table");  // far from zero, so that the text varies
    const Tensor& table = params.all()[0].value;
    for (int64_t i = 0; i < table.count(); ++i) table.data<double>()[i] = random.normal(static_cast<uint64_t>(i));
  }
};

using Text = std::vector<int32_t>;

Tensor prompt_of(const std::vector<Text>& rows) {
  Text all;
  for (const Text& row : rows) all.insert(all.end(), row.begin(), row.end());
  return from_host({static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size())}, all);
}

// What forward over the whole text so far says of the next token.
std::vector<double> last_logits(const LanguageModel& model, const Text& text) {
  NoGrad none;
  const std::vector<double> all = to_host(contiguous(model.forward(prompt_of({text}))));
  return {all.end() - model.options.vocabulary, all.end()};
}

int32_t most_probable(const LanguageModel& model, const Text& text) {
  const std::vector<double> logits = last_logits(model, text);
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

Text joined(Text a, const Text& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

TEST_CASE("generate: greedy text is what forward finds most probable at every position") {
  const Tiny tiny;
  const std::vector<Text> prompts = {{10, 3, 1, 4, 1}, {10, 5, 9, 2, 6}, {10, 0, 0, 7, 8}};
  const auto added = generate(tiny.model, prompt_of(prompts), {.tokens = 12, .sampler = {.temperature = 0}});
  REQUIRE(added.size() == 3);
  for (size_t s = 0; s < 3; ++s) {
    REQUIRE(added[s].size() == 12);
    Text text = prompts[s];
    for (const int32_t token : added[s]) {
      CHECK(token == most_probable(tiny.model, text));
      text.push_back(token);
    }
  }
  CHECK(added[0] != added[1]);
}

TEST_CASE("generate: the same seed writes the same text, and going on from it is as if it had not stopped") {
  const Tiny tiny;
  const Text prompt = {10, 2, 7};
  const auto text = [&](const Text& from, int64_t tokens, uint64_t seed) {
    return generate(tiny.model, prompt_of({from}), {.tokens = tokens, .sampler = {.top_k = 8, .seed = seed}})[0];
  };
  const Text whole = text(prompt, 24, 1);
  CHECK(text(prompt, 24, 1) == whole);
  CHECK(text(prompt, 24, 2) != whole);
  const Text first = text(prompt, 9, 1);
  CHECK(joined(first, text(joined(prompt, first), 15, 1)) == whole);
}

TEST_CASE("generate: sequences of a batch are drawn apart") {
  const Tiny tiny;
  const auto added = generate(tiny.model, prompt_of({{10, 2}, {10, 2}}), {.tokens = 24});
  CHECK(added[0] != added[1]);
  CHECK(added[0] == generate(tiny.model, prompt_of({{10, 2}}), {.tokens = 24})[0]);
}

TEST_CASE("generate: prompts of unequal length go on as each would alone, drawn or not, in stretches or not") {
  const Tiny tiny;
  layers::Texts prompts = {{10, 2}, {10, 5, 9, 2, 6, 3, 3, 1, 0}, {7}, {10, 3, 1, 4, 1}};
  const bool drawn = GENERATE(false, true), long_one = GENERATE(false, true);
  if (long_one) {  // the second prompt begins where a stretch does, the third one in the middle of the first stretch
    prompts.resize(3);
    for (const auto& [i, length] : {std::pair<size_t, size_t>{0, 4096 + 7}, {1, 7}, {2, 2000}}) {
      prompts[i].assign(length, 10);
      for (size_t t = 1; t < length; ++t) prompts[i][t] = static_cast<int32_t>((t * t + i) % 11);
    }
  }
  const layers::GenerateOptions options{.tokens = 8,
                                        .sampler = {.temperature = drawn ? 1.0 : 0.0, .top_k = drawn ? 8 : 0}};
  const auto together = generate(tiny.model, prompts, options);
  const layers::Prefilled all = layers::prefill(tiny.model, prompts);
  for (size_t s = 0; s < prompts.size(); ++s) {
    INFO("prompt " << s);
    const layers::Prefilled one = layers::prefill(tiny.model, {prompts[s]});
    const auto row = static_cast<int64_t>(s);
    // Products of other sizes sum in another order, in f64.
    CHECK(relative_rms(all.logits.slice_first(row, row + 1), one.logits) < 1e-12);
    for (size_t i = 0; i < all.state.size(); ++i) {
      CHECK(relative_rms(all.state[i].ssm.slice_first(row, row + 1), one.state[i].ssm) < 1e-12);
      CHECK(max_difference(all.state[i].conv.slice_first(row, row + 1), one.state[i].conv) < 1e-12);
    }
    if (drawn) CHECK(together[s].size() == 8);  // a number of its own for each sequence
    else CHECK(together[s] == generate(tiny.model, layers::Texts{prompts[s]}, options)[0]);
  }
  if (drawn) CHECK(together[0] == generate(tiny.model, layers::Texts{prompts[0]}, options)[0]);
}

TEST_CASE("decoder: writes the most probable text by itself, and another one where tokens are chosen") {
  const Tiny tiny;
  const layers::Texts prompts = {{10, 2, 7}, {10, 3, 1}};
  const auto expected = generate(tiny.model, prompts, {.tokens = 6, .sampler = {.temperature = 0}});
  layers::Prefilled start = layers::prefill(tiny.model, prompts);
  layers::Decoder decoder(tiny.model, std::move(start.state), start.logits);
  Text first = prompts[0];
  for (size_t i = 0; i < 6; ++i) {
    CHECK(decoder.token().data<int32_t>()[0] == expected[0][i]);
    CHECK(decoder.token().data<int32_t>()[1] == expected[1][i]);
    first.push_back(expected[0][i]);
    decoder.step();
  }
  const Text chosen = {4, 5};
  decoder.choose(chosen);
  first.push_back(4);
  decoder.step();
  const auto logits = last_logits(tiny.model, first);
  CHECK(max_difference(decoder.logits().slice_first(0, 1), from_host({1, 11}, logits, DType::f64)) < 1e-10);
}

TEST_CASE("generate: logits that are no numbers are refused, not written") {
  const Tiny tiny;
  fill(tiny.params.all().back().value, std::nan(""));
  CHECK_THROWS_WITH(generate(tiny.model, prompt_of({{10}}), {.tokens = 3, .sampler = {.temperature = 0}}),
                    ContainsSubstring("NaN"));
  CHECK_THROWS_WITH(generate(tiny.model, prompt_of({{10}}), {.tokens = 3}), ContainsSubstring("nan"));
}

TEST_CASE("generate: each token is told at once, and a sequence stops at its end") {
  const Tiny tiny;
  std::vector<Text> told(4);
  std::vector<int64_t> order;
  const auto added = generate(tiny.model, prompt_of({{10, 2}, {10, 3}, {10, 4}, {10, 5}}), {.tokens = 40, .end = 10},
                              [&](int64_t s, int32_t token) {
                                told[static_cast<size_t>(s)].push_back(token);
                                order.push_back(s);
                              });
  CHECK(told == added);
  CHECK(std::vector<int64_t>(order.begin(), order.begin() + 4) == std::vector<int64_t>{0, 1, 2, 3});
  std::vector<size_t> lengths;
  for (const Text& text : added) {
    const auto end = std::find(text.begin(), text.end(), 10);
    CHECK((end == text.end() ? text.size() == 40 : end + 1 == text.end()));
    lengths.push_back(text.size());
  }
  CHECK(std::ranges::min(lengths) < std::ranges::max(lengths));  // the others went on
}

TEST_CASE("generate: a long prompt in stretches is the prompt") {
  const Tiny tiny;
  Text prompt(4096 + 4, 1);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * i % 11);
  const auto added = generate(tiny.model, prompt_of({prompt, prompt}), {.tokens = 1, .sampler = {.temperature = 0}});
  CHECK(added[0][0] == most_probable(tiny.model, prompt));
  CHECK(added[1] == added[0]);
}

TEST_CASE("generate: the penalty covers prompt and text, and never the end") {
  const Tiny tiny;
  const double penalty = 3;
  layers::GenerateOptions options{.tokens = 8, .end = 10, .sampler = {.temperature = 0}};
  Text text = {10, 1, 2, 3};
  const Text free = generate(tiny.model, prompt_of({text}), options)[0];
  options.sampler.repetition_penalty = penalty;
  const Text added = generate(tiny.model, prompt_of({text}), options)[0];
  for (const int32_t token : added) {
    std::vector<double> logits = last_logits(tiny.model, text);
    for (const int32_t seen : std::set<int32_t>(text.begin(), text.end())) {
      double& l = logits[static_cast<size_t>(seen)];
      if (seen != 10) l = l > 0 ? l / penalty : l * penalty;
    }
    CHECK(token == std::ranges::max_element(logits) - logits.begin());
    text.push_back(token);
  }
  CHECK(added != free);
}

TEST_CASE("generate: no tokens is no text, and wrong prompts are named") {
  const Tiny tiny;
  CHECK(generate(tiny.model, prompt_of({{10}}), {.tokens = 0}) == std::vector<Text>{{}});
  CHECK_THROWS_WITH(generate(tiny.model, zeros({1, 0}, DType::i32)), ContainsSubstring("at least one token"));
  CHECK_THROWS_WITH(generate(tiny.model, layers::Texts{{1}, {}}), ContainsSubstring("at least one token"));
  CHECK_THROWS_WITH(generate(tiny.model, layers::Texts{}), ContainsSubstring("no prompts"));
  CHECK_THROWS_WITH(generate(tiny.model, zeros({1, 2})), ContainsSubstring("of f32 is not i32"));
  CHECK_THROWS_WITH(generate(tiny.model, prompt_of({{11}})), ContainsSubstring("outside the vocabulary of 11"));
  CHECK_THROWS_WITH(generate(tiny.model, prompt_of({{1}}), {.tokens = -1}), ContainsSubstring("-1 tokens"));
  CHECK_THROWS_WITH(generate(tiny.model, prompt_of({{1}}), {.sampler = {.top_p = 2}}), ContainsSubstring("top-p"));
}
