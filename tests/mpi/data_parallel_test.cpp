// A run on several ranks is the run on one.
#include "adder/autograd/tape.h"
#include "adder/data/checkpoint.h"
#include "adder/data/loader.h"
#include "adder/data/tokenizer.h"
#include "adder/kernels/accumulate.h"
#include "adder/layers/language_model.h"
#include "adder/optim/adamw.h"
#include "adder/optim/schedule.h"
#include "adder/tests/mpi/devices.h"
#include "adder/tests/temporary_folder.h"

#include "catch.h"

#include <cmath>
#include <limits>
#include <optional>

using namespace adder;

namespace {

Communicator world() { return Communicator::world(); }

// A folder that all ranks know, made and removed by the first.
class SharedFolder {
 public:
  SharedFolder() {
    if (world().rank() == 0) own_.emplace();
    path_ = world().exchange(own_ ? own_->path() : "")[0];
  }
  ~SharedFolder() { world().barrier(); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::optional<TemporaryFolder> own_;
  std::string path_;
};

std::string shard_in(const SharedFolder& folder) {
  if (world().rank() == 0) {
    const ByteTokenizer tokenizer;
    TokenShardWriter writer(folder / "train.h5",
                            {.tokenizer = tokenizer.name(), .vocabulary = 257, .end_of_document = 256});
    const Random random(1, "text");
    for (uint64_t d = 0; d < 12; ++d) {
      std::string text;
      for (uint64_t i = 0; i < 40 + 37 * d; ++i) text += static_cast<char>('a' + random.bits(d * 1000 + i) % 7);
      writer.add(tokenizer.encode(text), "test", static_cast<int64_t>(text.size()));
    }
    writer.finish();
  }
  world().barrier();
  return folder / "train.h5";
}

constexpr int64_t steps = 50;

// Where a run computes, and in what.
struct Kind {
  Device device;
  DType type;
  double tolerance() const { return type == DType::f32 ? 1e-5 : 1e-10; }  // what "the same run" means across rank grids
};

std::vector<Kind> kinds() {
  std::vector<Kind> all = {{Device::cpu, DType::f32}, {Device::cpu, DType::f64}};
  if (devices().size() > 1) all.push_back({Device::cuda, DType::f32});
  return all;
}

struct Training {
  Mesh mesh;
  Params params;
  layers::LanguageModel model;
  AdamW optimizer;
  TokenFile data;

  Training(const std::string& shard, const Mesh& mesh_, const Kind& kind)
      : mesh(mesh_),
        params(kind.device, {.seed = 3, .dtype = kind.type}),
        model(params, mesh,
              {.vocabulary = 257, .layers = 2, .dropout = 0.1, .mixer = {.d_model = 16, .d_state = 4, .head_dim = 8}}),
        optimizer(params, mesh),
        data(shard, mesh, {.batch = 8, .micro_batch = 2, .time = 24, .seed = 5}) {}

  // The step's loss over all ranks.
  double step() {
    const Schedule rate{.peak = 1e-2, .warmup_steps = 5, .steps = steps};
    const double learning_rate = rate(data.step());
    Tensor loss = zeros({1}, params.dtype(), params.device());
    for (Batch batch : data.next()) {
      loss += backward(model.loss(batch));
    }
    mesh.data.all_reduce(loss);
    optimizer.step(learning_rate);
    return item(loss);
  }
  Checkpoint checkpoint(const std::string& folder) {
    return Checkpoint(folder, {state(params), optimizer.state(), data.state()},
                      {.ranks = checkpoint_ranks(mesh.world)});
  }
};

// Of the same bits on every rank: each compares itself with the first.
bool same_everywhere(const Training& t) {
  bool same = true;
  for (const Param& p : t.params.all()) {
    const Tensor first = clone(p.value);
    t.mesh.world.broadcast(first);
    same = same && bitwise_equal(first, p.value);
  }
  return same;
}

}  // namespace

TEST_CASE("data parallel: the losses of fifty steps are those of one process, and all ranks hold the same bits") {
  const Kind kind = GENERATE(from_range(kinds()));
  const SharedFolder folder;
  const std::string shard = shard_in(folder);
  Training alone(shard, Mesh{}, kind), together(shard, Mesh(world()), kind), again(shard, Mesh(world()), kind);
  double difference = 0, first = 0, last = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const double expected = alone.step(), loss = together.step();
    difference = std::max(difference, std::abs(loss - expected));
    CHECK(again.step() == loss);  // to the bit, from run to run
    if (i == 0) first = loss;
    last = loss;
  }
  CHECK(difference < kind.tolerance());
  CHECK(last < first - 1);  // something was learned, so there was something to differ in
  CHECK(same_everywhere(together));
}

TEST_CASE("data parallel: a gradient that is not finite on one rank is skipped by all, as if the step had not been") {
  const Kind kind{GENERATE(from_range(devices())), DType::f32};
  const SharedFolder folder;
  const std::string shard = shard_in(folder);
  Training run(shard, Mesh(world()), kind), plain(shard, Mesh(world()), kind);
  for (int64_t i = 0; i < 4; ++i) {
    if (i == 2) {
      const Tensor weight = run.params.all()[1].tensor;
      const Tensor bad = full(weight.shape(), 0, weight.dtype(), weight.device());
      if (world().rank() == world().size() - 1)
        fill(bad.reshape({bad.count()}).slice_first(0, 1), std::numeric_limits<float>::quiet_NaN());
      backward({&weight, 1}, {&bad, 1});
      CHECK(std::isnan(item(run.optimizer.step(1e-2))));
      CHECK(run.optimizer.counts().skipped_in_a_row == 1);
    }
    CHECK(run.step() == plain.step());
  }
  CHECK(run.optimizer.counts().skipped == 1);
  CHECK(same_everywhere(run));
}

TEST_CASE("data parallel: saved by all ranks, resumed by one, by two and by all again, the run never stopped") {
  const Kind kind = GENERATE(from_range(kinds()));
  const SharedFolder folder;
  const std::string shard = shard_in(folder), saved = folder / "run";
  Training never(shard, Mesh{}, kind);
  std::vector<double> expected;
  for (int64_t i = 0; i < 16; ++i) expected.push_back(never.step());
  int64_t from = 0;
  for (const int64_t ranks : {world().size(), int64_t{1}, int64_t{2}, world().size()}) {
    const bool takes_part = world().rank() < ranks;
    const Communicator group = world().split(takes_part ? 0 : 1, world().rank());
    if (takes_part) {
      Training run(shard, Mesh(group), kind);
      Checkpoint checkpoint = run.checkpoint(saved);
      CHECK(checkpoint.resumed().value_or(0) == from);
      CHECK(run.data.step() == from);
      for (int64_t i = from; i < from + 4; ++i)
        CHECK(std::abs(run.step() - expected[static_cast<size_t>(i)]) < kind.tolerance());
      checkpoint.save(run.data.step());
    }
    from += 4;
    world().barrier();
  }
}

TEST_CASE("data parallel: an optimizer that was not told of the other ranks is refused") {
  Params params(Device::cpu);
  params.create("weight", {3}, init::constant(1));
  CHECK_THROWS_WITH(AdamW(params), ContainsSubstring("no mesh was given, but the program has"));
  CHECK_THROWS_WITH(AdamW(params, Mesh(world(), {.tensor = 2})), ContainsSubstring("tensor-parallel ranks"));
}
