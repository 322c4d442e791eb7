// A run that is stopped and resumed is the run that never stopped, bit for bit.
#include "adder/autograd/tape.h"
#include "adder/data/checkpoint.h"
#include "adder/data/loader.h"
#include "adder/data/tokenizer.h"
#include "adder/kernels/accumulate.h"
#include "adder/layers/language_model.h"
#include "adder/optim/adamw.h"
#include "adder/optim/schedule.h"
#include "adder/tests/temporary_folder.h"

#include "catch.h"

#include <memory>

using namespace adder;

namespace {

constexpr int64_t steps = 12;

// A training run in miniature: everything that a recipe holds.
struct Training {
  Params params{Device::cpu};
  layers::LanguageModel model;
  AdamW optimizer;
  TokenFile data;
  Checkpoint checkpoint;

  Training(const std::string& shard, const std::string& folder, layers::Recompute recompute = layers::Recompute::none)
      : model(params, Mesh{}, {.vocabulary = 257, .layers = 2, .dropout = 0.1, .recompute = recompute,
                               .mixer = {.d_model = 16, .d_state = 4, .head_dim = 8}}),
        optimizer(params),
        data(shard, {.batch = 4, .micro_batch = 2, .time = 24, .seed = 5}),
        checkpoint(folder, {state(params), optimizer.state(), data.state()}) {}

  double step() {
    const Schedule rate{.peak = 1e-2, .warmup_steps = 3, .steps = steps};
    const double learning_rate = rate(data.step());
    Tensor loss = zeros({1});
    for (const Batch& batch : data.next()) loss += backward(model.loss(batch));
    optimizer.step(learning_rate);
    return item(loss);
  }
  std::vector<Tensor> everything() {
    std::vector<Tensor> all;
    for (const Param& p : params.all()) all.push_back(clone(p.value));
    for (const auto& m : optimizer.moments()) all.insert(all.end(), {clone(m.exp_avg), clone(m.exp_avg_sq)});
    return all;
  }
};

std::string write_shard(const std::string& path, uint64_t seed = 1) {
  const ByteTokenizer tokenizer;
  TokenShardWriter writer(path, {.tokenizer = tokenizer.name(), .vocabulary = 257, .end_of_document = 256});
  const Random random(seed, "text");
  for (uint64_t d = 0; d < 12; ++d) {
    std::string text;
    for (uint64_t i = 0; i < 40 + 17 * d; ++i) text += static_cast<char>('a' + random.bits(d * 1000 + i) % 7);
    writer.add(tokenizer.encode(text), "test", static_cast<int64_t>(text.size()));
  }
  writer.finish();
  return path;
}

}  // namespace

TEST_CASE("resume: a run saved and resumed at any step ends with the same bits as one that never stopped") {
  const TemporaryFolder folder;
  const std::string shard = write_shard(folder / "train.h5");
  Training whole(shard, folder / "whole");
  std::vector<double> losses;
  while (whole.data.step() < steps) losses.push_back(whole.step());
  CHECK(losses.back() < losses.front());
  const auto expected = whole.everything();
  for (const int64_t stop : {1, 5, 11}) {
    const std::string run = folder / ("run" + std::to_string(stop));
    {
      Training first(shard, run);
      while (first.data.step() < stop) first.step();
      first.checkpoint.save(first.data.step());
    }
    Training second(shard, run, layers::Recompute::block);  // resumes; with recompute, which changes no bit either
    REQUIRE(second.checkpoint.resumed() == stop);
    REQUIRE(second.data.step() == stop);
    while (second.data.step() < steps) {
      const auto at = static_cast<size_t>(second.data.step());
      CHECK(second.step() == losses[at]);
    }
    const auto got = second.everything();
    for (size_t i = 0; i < got.size(); ++i) CHECK(bitwise_equal(got[i], expected[i]));
  }
}

TEST_CASE("resume: another seed, time or shard is refused by name") {
  const TemporaryFolder folder;
  const std::string shard = write_shard(folder / "train.h5"), run = folder / "run";
  {
    Training first(shard, run);
    first.step();
    first.checkpoint.save(1);
  }
  Params params(Device::cpu);
  params.create("w", {1}, init::constant(0));
  TokenFile other(shard, {.batch = 4, .micro_batch = 2, .time = 24, .seed = 6});
  CHECK_THROWS_WITH(Checkpoint(run, {state(params), other.state()}), ContainsSubstring("saved with the seed 5, not 6"));
  TokenFile longer(shard, {.batch = 4, .micro_batch = 2, .time = 25, .seed = 5});
  CHECK_THROWS_WITH(Checkpoint(run, {state(params), longer.state()}),
                    ContainsSubstring("saved with the time 24, not 25"));
  TokenFile elsewhere(write_shard(folder / "other.h5", 2), {.batch = 4, .micro_batch = 2, .time = 24, .seed = 5});
  CHECK_THROWS_WITH(Checkpoint(run, {state(params), elsewhere.state()}), ContainsSubstring("shard"));
}
