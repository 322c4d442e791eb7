// The whole training program in miniature, everywhere it runs: on the CPU, and on a GPU in f32 and in bf16.
#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/json.h"
#include "adder/data/checkpoint.h"
#include "adder/data/hugging_face.h"
#include "adder/distributed/run.h"
#include "adder/kernels/accumulate.h"
#include "adder/layers/generate.h"
#include "adder/optim/training_memory.h"
#include "adder/optim/training_step.h"
#include "adder/tests/places.h"
#include "adder/tests/temporary_folder.h"

#include "catch.h"

#include <cmath>
#include <filesystem>
#include <fstream>

using namespace adder;
using layers::LanguageModel;

namespace {

constexpr Place cpu_f32{Device::cpu, DType::f32};
constexpr int64_t rows = 4, micro_batch = 2, time_ = 64, vocabulary = 61;

layers::LanguageModelOptions small() {
  return {.vocabulary = vocabulary, .pad_vocabulary = 16, .layers = 2, .dropout = 0.1,
          .mixer = {.d_model = 64, .d_state = 16, .head_dim = 16}};
}

// Rows of text in which the next token mostly follows from the one before: there is something to learn.
std::vector<Batch> batches(int64_t step) {
  std::vector<Batch> all;
  for (int64_t first = 0; first < rows; first += micro_batch) {
    Batch b{.tokens = Tensor({micro_batch, time_}, DType::i32), .targets = Tensor({micro_batch, time_}, DType::i32),
            .document = zeros({micro_batch, time_}, DType::i32), .counted = micro_batch * time_,
            .scale = full({1}, 1.0 / (rows * time_), DType::f64),
            .position = from_host({2}, std::array{static_cast<int32_t>(step), static_cast<int32_t>(first)})};
    const Random random(static_cast<uint64_t>(step), "text");
    for (int64_t r = 0; r < micro_batch; ++r) {
      int32_t token = 0;
      for (int64_t t = 0; t < time_; ++t) {
        const uint64_t drawn = random.bits(static_cast<uint64_t>((first + r) * time_ + t));
        const auto next = static_cast<int32_t>(drawn % 8 == 0 ? drawn / 8 % vocabulary
                                                              : (5 * static_cast<uint64_t>(token) + 7) % vocabulary);
        b.tokens.data<int32_t>()[r * time_ + t] = token;
        b.targets.data<int32_t>()[r * time_ + t] = token = next;
        if (r == 1 && t >= 40) b.document.data<int32_t>()[r * time_ + t] = 1;  // two documents in one row
      }
    }
    all.push_back(b);
  }
  return all;
}

struct Training {
  Params params;
  LanguageModel model;
  AdamW optimizer;
  int64_t step = 0;

  explicit Training(const Place& place, const layers::LanguageModelOptions& o = small())
      : params(place.device, {.seed = 3, .compute = place.type}), model(params, Mesh{}, o), optimizer(params) {}

  Tensor train() {
    Tensor loss = zeros({1}, DType::f32, params.device());
    for (const Batch& batch : batches(step)) loss += backward(model.loss(batch));
    optimizer.step(2e-3 * std::min(1.0, static_cast<double>(step + 1) / 10));
    ++step;
    return loss;
  }
  /// A step whose gradient is not finite.
  void fail() {
    const Tensor weight = params.all().back().tensor;
    const Tensor bad = full(weight.shape(), std::nan(""), weight.dtype(), params.device());
    backward({&weight, 1}, {&bad, 1});
    optimizer.step(1e-3);
    ++step;
  }
  std::vector<double> losses(int64_t steps) {
    std::vector<double> all;
    for (int64_t i = 0; i < steps; ++i) all.push_back(item(train()));
    return all;
  }
  std::vector<Tensor> everything() const {
    std::vector<Tensor> all;
    for (const Param& p : params.all()) all.push_back(clone(p.value));
    for (const auto& m : optimizer.moments()) all.insert(all.end(), {clone(m.exp_avg), clone(m.exp_avg_sq)});
    for (const ParamBlock& b : params.blocks())
      if (b.rounded) all.push_back(clone(b.rounded.slice_first(0, b.used)));
    return all;
  }
};

void check_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  REQUIRE(a.size() == b.size());
  int64_t different = 0;
  for (size_t i = 0; i < a.size(); ++i) different += !bitwise_equal(a[i], b[i]);
  CHECK(different == 0);
}

void check_same_masters(const Params& a, const Params& b) {
  for (size_t i = 0; i < a.all().size(); ++i) {
    INFO(a.all()[i].name);
    CHECK(bitwise_equal(a.all()[i].value, b.all()[i].value));
  }
}

Tensor tokens_of(int64_t batch, int64_t time, Device device) {
  const Tensor t({batch, time}, DType::i32);
  const Random random(9, "tokens");
  for (int64_t i = 0; i < t.count(); ++i)
    t.data<int32_t>()[i] = static_cast<int32_t>(random.bits(static_cast<uint64_t>(i)) % vocabulary);
  return to_device(t, device);
}

}  // namespace

TEST_CASE("train places: fifty steps follow those of the CPU in f32, and learn") {
  const auto expected = Training(cpu_f32).losses(50);
  CHECK(expected.back() < expected.front() - 1);
  for (const Place& place : places()) {
    INFO(name(place));
    const auto losses = Training(place).losses(50);
    double most = 0;
    for (size_t i = 0; i < losses.size(); ++i) most = std::max(most, std::abs(losses[i] - expected[i]));
    // In f32 sums in another order. In bf16 every activation is rounded to 8 bits: a few thousandths of a loss of 4.
    CHECK(most < (place.type == DType::bf16 ? 0.05 : 1e-5));
  }
}

TEST_CASE("train places: ten runs of ten steps end with the same bits, with recompute as well") {
  for (const Place& place : places()) {
    INFO(name(place));
    Training first(place);
    const auto losses = first.losses(10);
    const auto expected = first.everything();
    for (int run = 1; run < 10; ++run) {
      layers::LanguageModelOptions o = small();
      o.recompute = static_cast<layers::Recompute>(run % 4);
      Training again(place, o);
      CHECK(again.losses(10) == losses);
      check_same_bits(again.everything(), expected);
    }
  }
}

TEST_CASE("train places: a checkpoint goes on anywhere, with the same masters and moments") {
  for (const Place& place : places()) {
    INFO(name(place));
    const TemporaryFolder folder;
    const auto states = [](Training& t) { return std::vector{state(t.params), t.optimizer.state()}; };
    Training there(place), here(cpu_f32), back(place);
    there.losses(3);
    Checkpoint(folder / "run", states(there)).save(3);
    CHECK(Checkpoint(folder / "run", states(here)).resumed() == 3);
    check_same_masters(there.params, here.params);
    CHECK(here.optimizer.counts().applied == 3);
    CHECK(Checkpoint(folder / "run", states(back)).resumed() == 3);
    check_same_bits(back.everything(), there.everything());
    back.step = there.step;
    CHECK(back.losses(2) == there.losses(2));  // bit for bit the run that never stopped
    here.step = 3;
    CHECK(std::isfinite(here.losses(1)[0]));
  }
}

TEST_CASE("train places: a model written by one place is read by another") {
  for (const Place& place : places()) {
    INFO(name(place));
    const TemporaryFolder folder;
    Training there(place), here(cpu_f32), again(place);
    there.losses(2);
    hugging_face::write(folder / "model", there.params, there.model, hugging_face::Form::state_spaces);
    hugging_face::read_weights(folder / "model", here.params, here.model);
    check_same_masters(there.params, here.params);
    hugging_face::read_weights(folder / "model", again.params, again.model);
    const Tensor tokens = tokens_of(1, 20, place.device);
    CHECK(bitwise_equal(again.model.forward(tokens), there.model.forward(tokens)));  // the rounded copies came along
  }
}

TEST_CASE("train places: decoding token by token equals the forward pass") {
  for (const Place& place : places()) {
    INFO(name(place));
    Training t(place);
    t.losses(5);
    NoGrad none;
    const int64_t batch = 3, time = 24, prompt = 7;
    const Tensor tokens = tokens_of(batch, time, place.device);
    const Tensor all = contiguous(t.model.forward(tokens)).reshape({batch, time * vocabulary});
    CHECK(bitwise_equal(contiguous(t.model.forward(tokens_of(batch, time, Device::cpu))).reshape(all.shape()), all));
    CHECK(all.dtype() == DType::f32);
    const Tensor here = to_device(tokens, Device::cpu);  // the model takes what is on the host to itself
    LanguageModel::State state = t.model.zero_state(batch);
    Tensor logits = t.model.prefill(contiguous(here.slice_last(0, prompt)), state);
    double most = 0;
    for (int64_t i = prompt;; ++i) {
      most = std::max(
          most, relative_rms(to_device(logits, Device::cpu),
                             to_device(contiguous(all.slice_last((i - 1) * vocabulary, i * vocabulary)), Device::cpu)));
      if (i == time) break;
      logits = t.model.step(contiguous((i % 2 == 0 ? here : tokens).slice_last(i, i + 1)).reshape({batch}), state);
    }
    // Chunks against a recurrence, in f32; in bf16 both round some ten activations on the way to 2^-9 each.
    CHECK(most < (place.type == DType::bf16 ? 3e-2 : 1e-4));
    const auto text = layers::generate(t.model, tokens, {.tokens = 5, .sampler = {.temperature = 0}});
    CHECK(text == layers::generate(t.model, here, {.tokens = 5, .sampler = {.temperature = 0}}));
    CHECK(text.at(2).size() == 5);
  }
}

TEST_CASE("train places: a log of tensors has every step, whether or not it waits") {
  for (const Place& place : places()) {
    INFO(name(place));
    const TemporaryFolder folder;
    const std::string out = folder / "run";
    {
      const std::array words{"train", "--device", name(place.device)};
      Run run(static_cast<int>(words.size()), words.data(), Flags("A test."), {.out = out, .validate_every = 2});
      CHECK(run.device() == place.device);
      run.start({.steps = 5});
      const Tensor value = zeros({1}, DType::f32, place.device);
      for (int64_t step = 1; step <= 5; ++step) {
        fill(value, static_cast<double>(step) / 2);  // what was logged before does not follow
        run.log(step, {{"loss", value}});
        if (run.should_validate(step)) run.log(step, {{"validation_loss", 1.0}});
      }
    }
    std::vector<std::string> lines;
    std::ifstream file(out + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      const Json json = Json::parse(line);
      const int64_t step = json.at("step").integer();
      const Json* const loss = json.find("loss");
      if (loss) CHECK(loss->number() == static_cast<double>(step) / 2);
      lines.push_back(fmt::format("{}{}", step, loss ? "" : "v"));
    }
    CHECK(lines == std::vector<std::string>{"1", "2", "2v", "3", "4", "4v", "5"});
  }
}

TEST_CASE("train places: a TrainingStep has the bits of the loop that it stands for, as a graph on a GPU") {
  for (const Place& place : places()) {
    INFO(name(place));
    const bool cuda = place.device == Device::cuda;
    Training by_hand(place), other(place);
    TrainingStep step(other.model, other.optimizer, Mesh{}, {.clip = 0.5, .graph = cuda ? "on" : "auto"});
    for (int64_t i = 0; i < 10; ++i) {
      std::vector<Batch> next = batches(i);
      if (i == 0 || i == 6) fill(next[1].scale, std::nan(""));  // a step that is skipped, before and in the graph
      if (i == 8) backward(other.model.loss(next[0]));         // gradients of another are dropped
      const double learning_rate = 1e-3 * static_cast<double>(i + 1);
      Tensor loss = zeros({1}, DType::f32, place.device);
      for (const Batch& batch : next) loss += backward(by_hand.model.loss(batch));
      const Tensor norm = by_hand.optimizer.step(learning_rate, {.clip = 0.5});
      const auto result = step(next, learning_rate);
      for (const Batch& batch : next) fill(batch.tokens, 0);  // the caller's again
      CHECK(bitwise_equal(result.loss, loss));
      CHECK(bitwise_equal(result.norm, norm));
      CHECK(std::isfinite(item(norm)) == (i != 0 && i != 6));
      CHECK(other.optimizer.skipped_in_a_row() == by_hand.optimizer.skipped_in_a_row());
      CHECK(step.is_graph() == (cuda && i > 0));
      CHECK_FALSE(gradient(other.params.all().front().tensor));
      if (i % 3 == 1) {  // a validation, of other shapes
        const Batch held_out{.tokens = tokens_of(3, 100, place.device), .targets = tokens_of(3, 100, place.device),
                             .document = zeros({3, 100}, DType::i32)};
        CHECK(bitwise_equal(other.model.token_losses(held_out), by_hand.model.token_losses(held_out)));
      }
    }
    CHECK(step.refused().empty());
    CHECK(other.optimizer.counts().applied == 8);
    CHECK(item(other.optimizer.skipped()) == 2);
    check_same_bits(other.everything(), by_hand.everything());
  }
}

TEST_CASE("train places: a TrainingStep says what it cannot do") {
  Training t(cpu_f32);
  CHECK_THROWS_WITH(TrainingStep(t.model, t.optimizer, Mesh{}, {.graph = "on"}),
                    ContainsSubstring("in one process on a GPU, not in 1 on the CPU"));
  CHECK_THROWS_WITH(TrainingStep(t.model, t.optimizer, Mesh{}, {.graph = "often"}), ContainsSubstring("graph often"));
  TrainingStep step(t.model, t.optimizer, Mesh{});
  CHECK_THROWS_WITH(step({}, 1e-3), ContainsSubstring("no micro-batch"));
  std::vector<Batch> next = batches(0);
  step(next, 1e-3);
  next.pop_back();
  CHECK_THROWS_WITH(step(next, 1e-3), ContainsSubstring("1 micro-batches after 2"));
  Batch& other = next.emplace_back(next[0]);
  other.tokens = tokens_of(1, 7, Device::cpu);
  CHECK_THROWS_WITH(step(next, 1e-3), ContainsSubstring("[1, 7]"));
  CHECK(launch_bound(8 * 256, 128));       // ./adder train --size small --batch 8 --time 256
  CHECK_FALSE(launch_bound(32 * 1024, 768));  // the default on a GPU
}

TEST_CASE("train places: steps in a row that are not finite are counted, on a GPU the first of them one step late") {
  for (const Place& place : places()) {
    INFO(name(place));
    Training t(place);
    t.losses(1);
    const auto before = t.everything();
    for (int64_t i = 1; i <= 3; ++i) {
      t.fail();
      CHECK(t.optimizer.skipped_in_a_row() == (place.device == Device::cpu || i > 1 ? i : 0));
    }
    CHECK(item(t.optimizer.skipped()) == 3);
    check_same_bits(t.everything(), before);
    t.losses(1);
    CHECK(t.optimizer.skipped_in_a_row() == 0);
  }
}

TEST_CASE("train places: the tenth step in a row that is not finite is known before it is saved") {
  for (const Place& place : places()) {
    INFO(name(place));
    const TemporaryFolder folder;
    Training t(place);
    Checkpoint checkpoint(folder / "run", {state(t.params), t.optimizer.state()});
    t.losses(1);
    while (t.step < 20) {  // as in the recipe, which saves where the tenth falls
      t.fail();
      if (t.optimizer.skipped_in_a_row() >= 10) break;
      if (t.step == 6 || t.step == 11) checkpoint.save(t.step);
    }
    CHECK(t.step == 11);
    CHECK(std::filesystem::exists(folder / "run/checkpoints/step_00000006"));
    CHECK_FALSE(std::filesystem::exists(folder / "run/checkpoints/step_00000011"));
  }
}

TEST_CASE("train places: the parts of the memory add up") {
  for (const Place& place : places()) {
    INFO(name(place));
    Training t(place);
    const TrainingMemory memory(t.params, t.optimizer);
    const Tensor later({1 << 20}, DType::f32, place.device);  // is no part of what was there before
    t.losses(1);
    std::map<std::string, double> gib;
    for (const Logged& part : memory.parts()) gib[part.name] = part.value.value();
    const double masters = 64.0 / 1024;  // one block
    CHECK(gib["memory/parameters"] == (place.type == DType::bf16 ? 1.5 : 1) * masters);
    CHECK(gib["memory/gradients"] == masters);
    CHECK(gib["memory/other"] >= 0);
    CHECK(gib["memory/activations"] > 4.0 / 1024);
    CHECK(gib["memory/peak"] == Approx(gib["memory/parameters"] + gib["memory/gradients"] + gib["memory/moments"] +
                                       gib["memory/other"] + gib["memory/activations"]));
    CHECK(gib["memory/reserved"] >= gib["memory/peak"]);
  }
}
