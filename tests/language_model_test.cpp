#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/layers/language_model_flags.h"
#include "adder/optim/adamw.h"

#include "catch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>

using namespace adder;
using layers::LanguageModel;
using layers::LanguageModelOptions;
using layers::Recompute;

namespace {

LanguageModelOptions tiny() {
  return {.vocabulary = 11, .pad_vocabulary = 8, .layers = 3,
          .mixer = {.d_model = 8, .d_state = 3, .head_dim = 4, .A_min = 0.1, .A_max = 1, .dt_init_min = 0.5,
                    .dt_init_max = 2, .chunk = 4}};
}

Tensor tokens_of(int64_t batch, int64_t time, uint64_t seed) {
  Tensor t({batch, time}, DType::i32);
  const Random random(seed, "tokens");
  for (int64_t i = 0; i < t.count(); ++i)
    t.data<int32_t>()[i] = static_cast<int32_t>(random.bits(static_cast<uint64_t>(i)) % 11);
  return t;
}

Batch batch_of(int64_t rows, int64_t time, uint64_t seed) {
  Batch b{.tokens = tokens_of(rows, time, seed), .targets = tokens_of(rows, time, seed + 1),
          .document = zeros({rows, time}, DType::i32)};
  std::fill_n(b.document.data<int32_t>() + time - 2, 2, 1);  // a second document in the first row
  b.counted = rows * time;
  b.scale = full({1}, 1.0 / static_cast<double>(rows * time), DType::f64);
  b.position = from_host({2}, std::array<int32_t, 2>{4, 0});
  return b;
}

std::vector<Tensor> gradients_of(const Params& params) {
  params.settle_gradients();
  std::vector<Tensor> all;
  for (const Param& p : params.all()) all.push_back(clone(p.gradient));
  return all;
}

}  // namespace

TEST_CASE("language model: the loss is the mean of the negative log-probabilities of its own logits") {
  Params params(Device::cpu, {.seed = 1, .dtype = DType::f64});
  const LanguageModel model(params, Mesh{}, tiny());
  const Batch b = batch_of(2, 6, 5);
  const auto logits = to_host(model.forward(b.tokens, {.document = b.document}));
  double nats = 0;
  for (size_t i = 0; i < 12; ++i) {
    double sum = 0;
    for (size_t v = 0; v < 11; ++v) sum += std::exp(logits[i * 11 + v]);
    nats += std::log(sum) - logits[i * 11 + static_cast<size_t>(b.targets.data<int32_t>()[i])];
  }
  CHECK(std::abs(item(model.loss(b)) - nats / 12) < 1e-12);
  double each = 0;
  for (double x : to_host(model.token_losses(b))) each += x;
  CHECK(std::abs(each - nats) < 1e-11);
}

TEST_CASE("language model: the gradient of a parameter agrees with differences of the loss") {
  for (const bool mlp : {false, true}) {
    Params params(Device::cpu, {.seed = 1, .dtype = DType::f64});
    LanguageModelOptions o = tiny();
    o.d_intermediate = mlp ? 10 : 0;
    o.tied = !mlp;
    const LanguageModel model(params, Mesh{}, o);
    const Batch b = batch_of(2, 6, 5);
    copy(random_normal(params.all()[0].value.shape(), 9), params.all()[0].value);  // an embedding that is not near zero
    backward(model.loss(b));
    const auto gradients = gradients_of(params);
    for (size_t i = 0; i < params.all().size(); ++i) {  // one direction of each parameter
      const Param& p = params.all()[i];
      const Tensor v = random_normal(p.value.shape(), 100 + i), before = clone(p.value);
      const auto at = [&](double h) {
        auto x = to_host(before);
        const auto d = to_host(v);
        for (size_t k = 0; k < x.size(); ++k) x[k] += h * d[k];
        copy(from_host(p.value.shape(), x, DType::f64), p.value);
        return item(model.loss(b));
      };
      const double fd = (at(1e-5) - at(-1e-5)) / 2e-5;
      copy(before, p.value);
      double an = 0, norm = 0;
      const auto g = to_host(gradients[i]), d = to_host(v);
      for (size_t k = 0; k < g.size(); ++k) an += g[k] * d[k], norm += g[k] * g[k];
      INFO(p.name << ": " << an << " by backward, " << fd << " by differences");
      const double rounding = 1e-10;  // of the two losses, over 2h
      CHECK(std::abs(an - fd) < 1e-6 * std::max({std::abs(an), std::abs(fd), 1e-3 * std::sqrt(norm)}) + rounding);
    }
  }
}

TEST_CASE("language model: prefill and step equal forward at every position") {
  Params params(Device::cpu, {.seed = 1, .dtype = DType::f64});
  LanguageModelOptions o = tiny();
  o.d_intermediate = 10;
  const LanguageModel model(params, Mesh{}, o);
  const Tensor tokens = tokens_of(2, 9, 7);
  const auto at = [&](const Tensor& t, int64_t i) {  // column i of i32 [batch, time]
    return clone(t.slice_last(i, i + 1)).reshape({t.size(0)});
  };
  const Tensor all = clone(model.forward(tokens)).reshape({2, 9 * 11});
  for (const int64_t prompt : {1, 4, 9}) {
    LanguageModel::State state = model.zero_state(2);
    Tensor logits = model.prefill(clone(tokens.slice_last(0, prompt)), state);
    for (int64_t t = prompt;; ++t) {
      CHECK(relative_rms(logits, clone(all.slice_last((t - 1) * 11, t * 11))) < 1e-12);
      if (t == 9) break;
      logits = model.step(at(tokens, t), state);
    }
  }
}

TEST_CASE("language model: recompute gives the same bits, dropout included, and holds less") {
  std::vector<Tensor> direct;
  double loss = 0;
  int64_t held[4];
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::scan, Recompute::block}) {
    Params params(Device::cpu);
    LanguageModelOptions o = tiny();
    o.dropout = 0.3;
    o.recompute = recompute;
    o.d_intermediate = 10;
    const LanguageModel model(params, Mesh{}, o);
    const Batch b = batch_of(2, 16, 5);
    const int64_t before = memory_use(Device::cpu).in_use;
    const Tensor l = model.loss(b);
    held[static_cast<size_t>(recompute)] = memory_use(Device::cpu).in_use - before;
    if (!direct.empty()) CHECK(item(l) == loss);
    loss = item(l);
    backward(l);
    const auto gradients = gradients_of(params);
    if (!direct.empty())
      for (size_t i = 0; i < gradients.size(); ++i) CHECK(bitwise_equal(gradients[i], direct[i]));
    direct = gradients;
    CHECK(item(model.loss(b, layers::Mode::evaluate)) != loss);  // dropout did something
  }
  CHECK(held[3] < held[0] / 3);
  CHECK(held[2] < held[1]);
  CHECK(held[1] < held[0] * 3 / 4);
}

TEST_CASE("language model: micro-batches add to the batch, dropout included") {
  Params params(Device::cpu, {.seed = 1, .dtype = DType::f64});
  LanguageModelOptions o = tiny();
  o.dropout = 0.2;
  const LanguageModel model(params, Mesh{}, o);
  const Batch b = batch_of(4, 6, 5);
  const double loss = item(backward(model.loss(b)));
  const auto whole = gradients_of(params);
  params.clear_gradients();
  double sum = 0;
  for (int32_t first : {0, 2}) {
    const auto rows = [&](const Tensor& t) { return t.slice_first(first, first + 2); };
    Batch part{.tokens = rows(b.tokens), .targets = rows(b.targets), .document = rows(b.document), .counted = 12,
               .scale = b.scale, .position = from_host({2}, std::array<int32_t, 2>{4, first})};
    sum += item(backward(model.loss(part)));
  }
  CHECK(std::abs(sum - loss) < 1e-14);
  const auto parts = gradients_of(params);
  for (size_t i = 0; i < whole.size(); ++i) CHECK(relative_rms(parts[i], whole[i]) < 1e-12);
}

TEST_CASE("language model: names and sizes of the parameters") {
  Params params(Device::cpu);
  const LanguageModel model(params, Mesh{},
                            {.vocabulary = 50277, .pad_vocabulary = 16, .layers = 2,
                             .mixer = {.d_model = 64, .d_state = 16, .head_dim = 16}});
  CHECK(params.all()[0].name == "embedding/weight");
  CHECK(params.all()[0].shape == Shape{50288, 64});
  int64_t decayed = 0;
  for (const Param& p : params.all()) decayed += p.options.decay;
  CHECK(decayed == 1 + 2 * (5 + 3 + 1));  // the table; in_proj's and the convolution's parts, out_proj
  CHECK_THROWS_AS(LanguageModel(Params(Device::cpu), Mesh{}, LanguageModelOptions{.layers = 0}), Error);
}

TEST_CASE("language model: weight decay moves the table, products' and convolutions' weights, and nothing else") {
  Params params(Device::cpu);
  LanguageModelOptions o = tiny();
  o.layers = 1, o.d_intermediate = 16, o.tied = false;
  o.mixer.bias = true, o.mixer.d_ssm = 8;
  const LanguageModel model(params, Mesh{}, o);
  for (const Param& p : params.all()) fill(p.value, 2);  // biases begin as zeros, which no decay would move
  AdamW optimizer(params, {.weight_decay = 0.5});
  optimizer.step(0.25);  // no gradient has arrived: all are zero
  std::string moved, still;
  for (const Param& p : params.all()) {
    const auto values = to_host(p.value);
    const std::vector<double> as_it_was(values.size(), 2), decayed(values.size(), 2 - 0.25 * 0.5 * 2);
    CAPTURE(p.name);
    CHECK((values == as_it_was || values == decayed));
    (values == as_it_was ? still : moved) += p.name + ' ';
  }
  const std::string m = "block/0/mixer/", w = m + "in_proj/weight/", b = m + "in_proj/bias/";
  CHECK(moved == "embedding/weight " + m + "conv/weight/x " + m + "conv/weight/B " + m + "conv/weight/C " + m +
                     "out_proj/weight " + w + "z0 " + w + "x0 " + w + "z " + w + "x " + w + "B " + w + "C " + w +
                     "dt block/0/mlp/in/weight block/0/mlp/out/weight head/weight ");
  CHECK(still == "norm/weight block/0/norm/weight " + m + "conv/bias/x " + m + "conv/bias/B " + m + "conv/bias/C " + m +
                     "out_proj/bias " + b + "z0 " + b + "x0 " + b + "z " + b + "x " + b + "B " + b + "C " + b + "dt " +
                     m + "A_log " + m + "dt_bias " + m + "D " + m + "norm/weight block/0/mlp_norm/weight ");
}

TEST_CASE("language model: sizes by name, their FLOPs, and flags that change a part of one") {
  // GFLOP a token by the formula of Megatron-LM, to the digits given.
  for (const auto& [name, expected] : std::map<std::string, double>{
           {"130m", 0.87}, {"370m", 2.47}, {"780m", 5.07}, {"1.3b", 8.58}, {"2.7b", 17.08}}) {
    LanguageModelOptions o;
    set_size(o, name);
    CHECK(o.table_rows() == 50288);
    CHECK(o.training_flops() / 1e9 == Approx(expected).margin(0.0051));
  }
  LanguageModelOptions o{.dropout = 0.5};
  Flags flags("");
  add_flags(flags, o);
  const std::array words{"train", "--layers", "3", "--size", "130m"};
  flags.parse(static_cast<int>(words.size()), words.data());
  CHECK(o.layers == 3);
  CHECK(o.mixer.d_model == 768);
  CHECK(o.dropout == 0.5);
  CHECK(o.vocabulary == 50277);

  double rate = 0.5;  // a size brings its learning rate where there is one to set
  Flags trains("");
  add_flags(trains, o, &rate);
  trains.add("learning-rate", rate, "");
  trains.parse(static_cast<int>(words.size()), words.data());
  CHECK(rate == 3e-3);
  const std::array given{"train", "--learning-rate", "0.25", "--size", "tiny"};
  trains.parse(static_cast<int>(given.size()), given.data());
  CHECK(rate == 0.25);
  CHECK(o.vocabulary == 50277);  // a tiny one has any

  CHECK(slow_on_gpu({.d_state = 128, .head_dim = 64}).empty());
  CHECK_THAT(slow_on_gpu({.d_state = 136, .head_dim = 64}), ContainsSubstring("--d-state 136"));
  CHECK_THAT(slow_on_gpu({.d_state = 16, .head_dim = 20}), ContainsSubstring("--head-dim 20"));
  CHECK_THROWS_WITH(set_size(o, "131m"), "LanguageModel: there is no size 131m");
}
