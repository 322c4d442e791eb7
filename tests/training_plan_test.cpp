// The plan of a training beside the training: its parameters are counted alike and its memory is what a step uses.
#include "adder/optim/training_plan.h"

#include "adder/autograd/tape.h"
#include "adder/core/batch.h"
#include "adder/kernels/matmul.h"
#include "adder/layers/language_model_sizes.h"
#include "adder/optim/training_memory.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <map>

using namespace adder;
using layers::LanguageModel;
using layers::LanguageModelOptions;
using layers::MicroBatch;
using layers::Recompute;

namespace {

Batch zero_batch(const MicroBatch& b) {
  const Shape shape{b.rows, b.time};
  return to_device({.tokens = zeros(shape, DType::i32), .targets = zeros(shape, DType::i32),
                    .document = zeros(shape, DType::i32), .counted = shape.count(),
                    .scale = full({1}, 1.0 / static_cast<double>(shape.count()), DType::f64),
                    .position = zeros({2}, DType::i32)}, b.device);
}

struct Measured {
  int64_t count;
  double peak, activations;  // GiB
};

Measured measured_step(const LanguageModelOptions& o, const MicroBatch& b) {
  const Tensor a = zeros({64, 64}, b.dtype, b.device);
  multiply({.a = a, .b = a, .c = empty_like(a)});  // a GPU's workspace is there from now on
  release_cached(b.device);
  const Params params(b.device, {.compute = b.dtype});
  const LanguageModel model(params, Mesh{}, o);
  AdamW optimizer(params);
  const Batch batch = zero_batch(b);
  const TrainingMemory memory(params, optimizer);
  backward(model.loss(batch));
  optimizer.step(1e-3);
  synchronize();
  std::map<std::string, double> gib;
  for (const Logged& part : memory.parts()) gib[part.name] = part.value.value();
  return {params.count(), gib["memory/peak"], gib["memory/activations"]};
}

struct Case {
  const char* name;
  LanguageModelOptions model;
  int64_t rows = 2, time = 256;
};

std::vector<Case> cases() {
  const LanguageModelOptions plain{.layers = 3, .mixer = {.d_model = 256, .d_state = 64, .head_dim = 32}};
  std::vector<Case> all;
  const auto add = [&](const char* name, auto change) {
    all.push_back({name, plain});
    change(all.back());
  };
  add("plain", [](Case&) {});
  add("one layer, a large vocabulary", [](Case& c) { c.model.layers = 1, c.model.vocabulary = 20'000; });
  add("untied", [](Case& c) { c.model.tied = false, c.model.vocabulary = 5'000; });
  add("an odd time", [](Case& c) { c.rows = 3, c.time = 151; });
  add("long rows", [](Case& c) { c.rows = 1, c.time = 700; });
  add("states of 128", [](Case& c) { c.model.mixer.d_state = 128; });
  add("states of 16", [](Case& c) { c.model.mixer.d_state = 16, c.model.mixer.head_dim = 64; });
  add("groups", [](Case& c) { c.model.mixer.groups = 4; });
  add("a gated MLP", [](Case& c) { c.model.d_intermediate = 768; });
  add("dropout", [](Case& c) { c.model.dropout = 0.1; });
  add("part of the channels through the SSD", [](Case& c) { c.model.mixer.d_ssm = 256; });
  add("no norm", [](Case& c) { c.model.mixer.rms_norm = false; });
  add("no norm and a part", [](Case& c) { c.model.mixer.rms_norm = false, c.model.mixer.d_ssm = 256; });
  return all;
}

}  // namespace

TEST_CASE("training plan: parameters and memory are those of a real step") {
  for (const Place& place : places()) {
    if (place.device == Device::cuda && place.type == DType::f32) continue;  // token by token: bounded, not planned
    for (Case& c : cases())
      for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::scan, Recompute::block}) {
        c.model.recompute = recompute;
        INFO(name(place) << ", " << c.name << ", " << layers::recompute_names[static_cast<size_t>(recompute)]);
        const bool cuda = place.device == Device::cuda;  // large enough for 10 % to be more than its workspace
        const MicroBatch batch{(cuda ? 16 : 1) * c.rows, c.time, place.type, place.device};
        const MemoryPlan plan = planned_memory(c.model, batch);
        const Measured real = measured_step(c.model, batch);
        const double total = static_cast<double>(plan.total()) / (1 << 30);
        const double activations = static_cast<double>(plan.activations) / (1 << 30);
        CHECK(plan.count == real.count);
        CHECK(total == Approx(real.peak).epsilon(0.1));  // as --plan promises
        if (!cuda) CHECK(activations == Approx(real.activations).epsilon(0.1));
      }
  }
}

// What an H200 measured of whole steps (docs/performance.md), each of one micro-batch, with the vocabulary of 50277.
TEST_CASE("training plan: the memory of large models is what was measured on a GPU") {
  const auto planned = [](const char* size, int64_t rows, Recompute recompute) {
    LanguageModelOptions o{.recompute = recompute};
    layers::set_size(o, size);
    const MemoryPlan plan = planned_memory(o, {rows, 2'048, DType::bf16, Device::cuda});
    return static_cast<double>(plan.total()) / (1 << 30);
  };
  CHECK(planned("130m", 32, Recompute::none) == Approx(34.46).epsilon(0.1));
  CHECK(planned("130m", 32, Recompute::cheap) == Approx(22.87).epsilon(0.1));
  CHECK(planned("130m", 32, Recompute::scan) == Approx(18.56).epsilon(0.1));
  CHECK(planned("130m", 32, Recompute::block) == Approx(11.65).epsilon(0.1));
  CHECK(planned("370m", 16, Recompute::cheap) == Approx(32.29).epsilon(0.1));
  CHECK(planned("780m", 16, Recompute::cheap) == Approx(51.89).epsilon(0.1));
  CHECK(planned("1.3b", 8, Recompute::cheap) == Approx(48.53).epsilon(0.1));
  CHECK(planned("2.7b", 4, Recompute::cheap) == Approx(67.06).epsilon(0.1));
}

TEST_CASE("training plan: parameters of the sizes by name lie in blocks of at least 64 MiB, side by side") {
  for (const std::string& size : layers::size_names()) {
    INFO(size);
    LanguageModelOptions o;
    layers::set_size(o, size);
    const Params params(Device::cpu, {.sizes_only = true});
    const LanguageModel model(params, Mesh{}, o);
    CHECK((params.blocks().size() > 1) == (size != "tiny" && size != "small"));
    for (const ParamBlock& block : params.blocks()) {
      CHECK(block.capacity * size_of(DType::f32) >= int64_t{64} << 20);
      if (params.blocks().size() > 1) CHECK(block.capacity == block.used);
    }
  }
}

TEST_CASE("training plan: what it says to change fits") {
  TrainingPlan plan{.micro_batch = {64, 2'048, DType::bf16, Device::cuda}, .batch = 64, .steps = 100, .peak = 989e12,
                    .memory = int64_t{24} << 30, .device_name = "a GPU"};
  layers::set_size(plan.model, "130m");
  CHECK_THAT(describe(plan), ContainsSubstring("too much: --micro-batch 16 takes"));
  CHECK_THAT(describe(plan), ContainsSubstring("epochs not known"));
  plan.micro_batch.rows = 16;
  plan.training_tokens = 1'000'000;
  CHECK_THAT(describe(plan), !ContainsSubstring("too much") && ContainsSubstring("13.11 epochs of 1,000,000"));
  layers::set_size(plan.model, "2.7b");
  CHECK_THAT(describe(plan), ContainsSubstring("too much: so are parameters, gradients and moments alone"));
  layers::set_size(plan.model, "130m");
  plan.micro_batch.time = 4'000'000;
  CHECK_THAT(describe(plan), ContainsSubstring("no --micro-batch and no --recompute makes it fit"));
  plan.peak = 0;
  CHECK_THAT(describe(plan), ContainsSubstring("--peak"));
}
