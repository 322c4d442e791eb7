// CUDA graphs: of a function, of a decoding step, of a whole training step.
#include "adder/core/captured.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/kernels/accumulate.h"
#include "adder/kernels/elementwise.h"
#include "adder/layers/decoder.h"
#include "adder/layers/generate.h"
#include "adder/optim/adamw.h"
#include "adder/tests/places.h"

#include <array>

using namespace adder;
using layers::LanguageModel;

namespace {

constexpr int64_t vocabulary = 61;

layers::LanguageModelOptions small() {
  return {.vocabulary = vocabulary, .pad_vocabulary = 16, .layers = 2, .dropout = 0.1,
          .mixer = {.d_model = 64, .d_state = 16, .head_dim = 16}};
}

std::vector<Place> gpu_places() {
  if (no_gpu()) return {};
  return {{Device::cuda, DType::f32}, {Device::cuda, DType::bf16}};
}

Batch batch_of(int64_t step) {
  constexpr int64_t rows = 3, time = 70;  // one past a chunk of the SSD
  const Random random(static_cast<uint64_t>(step), "text");
  const auto tokens = [&](uint64_t which) {
    const Tensor t({rows, time}, DType::i32);
    for (int64_t i = 0; i < t.count(); ++i)
      t.data<int32_t>()[i] = static_cast<int32_t>(random.bits(static_cast<uint64_t>(i), which) % vocabulary);
    return t;
  };
  const Tensor document = zeros({rows, time}, DType::i32);
  std::fill_n(document.data<int32_t>() + 40, 30, 1);
  return {.tokens = tokens(0), .targets = tokens(1), .document = document, .counted = rows * time,
          .scale = full({1}, 1.0 / (rows * time), DType::f64),
          .position = from_host({2}, std::array{static_cast<int32_t>(step), 0})};
}

// Ten steps of training, losses and norms as they come: kernel by kernel, or from the second step on as a graph.
struct Training {
  Params params;
  LanguageModel model;
  AdamW optimizer;

  explicit Training(const Place& place)
      : params(place.device, {.seed = 3, .compute = place.type}), model(params, Mesh{}, small()), optimizer(params) {}

  std::vector<double> run(bool as_graph) {
    const Batch batch = to_device(batch_of(0), params.device());
    const Tensor norm({1}, DType::f64, params.device());
    auto step = captured(params.device(), [&] {
      Tensor loss = zeros({1}, DType::f32, params.device());
      for (int micro = 0; micro < 2; ++micro) loss += backward(model.loss(batch));  // the second one's gradients add
      copy(optimizer.update(), norm);
      return loss;
    });
    std::vector<double> numbers;
    for (int64_t i = 0; i < 10; ++i) {
      const Batch next = batch_of(i);
      copy(next.tokens, batch.tokens);
      copy(next.targets, batch.targets);
      copy(next.position, batch.position);
      optimizer.prepare(1e-3 * static_cast<double>(i + 1));
      if (!as_graph) step.stay_eager("for comparison");
      const Tensor loss = step();
      optimizer.watch();
      const Tensor between({1000, 1000}, DType::f32, params.device());  // memory of others between the steps
      fill(between, std::nan(""));
      numbers.push_back(item(loss));
      numbers.push_back(item(norm));
      if (as_graph) CHECK(step.is_graph() == (i > 0));
    }
    if (as_graph) CHECK(step.eager_because().empty());
    return numbers;
  }
};

}  // namespace

TEST_CASE("cuda captured: replays have the bits of eager calls, from inputs that change", "[gpu][small]") {
  if (no_gpu()) return;
  const Tensor x({33}, DType::f32, Device::cuda), sum = zeros({33}, DType::f32, Device::cuda);
  int calls = 0;
  const auto f = [&] {
    ++calls;
    Tensor y = x;
    for (int i = 0; i < 5; ++i) y = apply(Multiply{.a = apply(Add{.a = y, .b = x}), .b = y});  // memory used again
    accumulate(y, sum);  // what it leaves behind is moved on at each call
    return y;
  };
  auto graph = captured(Device::cuda, f);
  Tensor expected = zeros({33}, DType::f32, Device::cuda);
  for (int i = 0; i < 6; ++i) {
    copy(random_normal({33}, static_cast<uint64_t>(i), 0.1, 0, DType::f32), x);
    const Tensor y = graph();
    const Tensor others = full({33}, -1, DType::f32, Device::cuda), more = full({33}, -2, DType::f32, Device::cuda);
    Tensor again = x;
    for (int k = 0; k < 5; ++k) again = apply(Multiply{.a = apply(Add{.a = again, .b = x}), .b = again});
    CHECK(bitwise_equal(y, again));
    accumulate(again, expected);
    CHECK(bitwise_equal(sum, expected));
    CHECK(item(others.slice_first(7, 8)) == -1);
    CHECK(item(more.slice_first(7, 8)) == -2);
  }
  CHECK(graph.is_graph());
  CHECK(calls == 2);
}

TEST_CASE("cuda captured: the graph's memory is nobody else's until it ends", "[gpu][small]") {
  if (no_gpu()) return;
  const auto in_use = [] { return memory_use(Device::cuda).in_use; };
  const Tensor x = full({1 << 16}, 1, DType::f32, Device::cuda);
  const int64_t before = in_use();
  std::vector<Tensor> others;
  Tensor result;
  {
    auto graph = captured(Device::cuda, [&] {
      return apply(Scale{.x = apply(Scale{.x = apply(Scale{.x = x, .factor = 2}), .factor = 2}), .factor = 2});
    });
    graph();
    result = graph();
    REQUIRE(graph.is_graph());
    CHECK(in_use() >= before + 2 * x.count() * 4);  // the result and what is between
    for (int i = 0; i < 8; ++i) others.push_back(full(x.shape(), -1, DType::f32, Device::cuda));
    for (int i = 0; i < 3; ++i) graph();
    for (const Tensor& t : others) CHECK(bitwise_equal(t, full(x.shape(), -1)));
    CHECK(bitwise_equal(result, full(x.shape(), 8)));
    others.clear();
  }
  CHECK(bitwise_equal(result, full(x.shape(), 8)));  // outlives the graph
  result = {};
  CHECK(in_use() == before);
}

TEST_CASE("cuda captured: what waits for the GPU, or copies from the host, runs for good, and says why",
          "[gpu][small]") {
  if (no_gpu()) return;
  const Tensor x = zeros({3}, DType::f32, Device::cuda);
  double read = -1;
  auto reads = captured(Device::cuda, [&] {
    fill(x, read + 1);
    read = item(x.slice_first(0, 1));
  });
  auto writes = captured(Device::cuda, [&] { return to_device(full({3}, read), Device::cuda); });
  for (int i = 0; i < 4; ++i) {
    reads();
    CHECK(read == i);
    CHECK(to_host(writes()) == std::vector<double>(3, i));
  }
  for (const std::string& why : {reads.eager_because(), writes.eager_because()})
    CHECK_THAT(why, ContainsSubstring("cannot be part of a CUDA graph"));
  CHECK_FALSE(reads.is_graph());
}

TEST_CASE("cuda captured: inside another recording it becomes a part of that graph", "[gpu][small]") {
  if (no_gpu()) return;
  const Tensor x = zeros({3}, DType::f32, Device::cuda);
  int calls = 0;
  auto inner = captured(Device::cuda, [&] { return ++calls, apply(Scale{.x = x, .factor = 2}); });
  auto outer = captured(Device::cuda, [&] { return apply(Scale{.x = inner(), .factor = 3}); });
  for (int i = 0; i < 4; ++i) {
    fill(x, i);
    CHECK(item(outer().slice_first(0, 1)) == 6 * i);
  }
  CHECK(outer.is_graph());
  CHECK_FALSE(inner.is_graph());
  CHECK_THAT(inner.eager_because(), ContainsSubstring("part of another"));
  CHECK(calls == 2);
}

// Not for the sanitizers, to which the refused call is an error.
TEST_CASE("cuda captured: what waits for the stream is refused by CUDA, and runs for good", "[gpu]") {
  if (no_gpu()) return;
  int calls = 0;
  auto waits = captured(Device::cuda, [&] {
    ++calls;
    synchronize();
  });
  for (int i = 0; i < 3; ++i) waits();
  CHECK(calls == 4);  // one of them was recorded in vain
  CHECK_FALSE(waits.eager_because().empty());
  CHECK_FALSE(waits.is_graph());
  CHECK(item(full({1}, 3, DType::f32, Device::cuda)) == 3);  // and nothing is hurt
}

TEST_CASE("cuda captured: a decoding step as a graph has the bits of one kernel by kernel", "[gpu]") {
  const int64_t batch = GENERATE(1, 3, 20);  // 20: products through cuBLASLt
  for (const Place& place : gpu_places()) {
    INFO(name(place) << ", batch " << batch);
    Params params(place.device, {.seed = 3, .compute = place.type});
    const LanguageModel model(params, Mesh{}, small());
    layers::Texts prompts;
    for (int64_t b = 0; b < batch; ++b) prompts.emplace_back(static_cast<size_t>(b % 5 + 1), static_cast<int32_t>(b));
    const auto logits_of = [&](bool as_graph) {
      layers::Prefilled start = layers::prefill(model, prompts);
      layers::Decoder decoder(model, std::move(start.state), start.logits);
      if (!as_graph) decoder.stay_eager();
      std::vector<Tensor> all;
      for (int i = 0; i < 12; ++i) {
        if (i == 6) decoder.choose(std::vector<int32_t>(static_cast<size_t>(batch), 5));
        decoder.step();
        all.push_back(clone(decoder.logits()));
        all.push_back(clone(decoder.token()));
      }
      CHECK(decoder.is_graph() == as_graph);
      return all;
    };
    const auto eager = logits_of(false), graph = logits_of(true);
    for (size_t i = 0; i < eager.size(); ++i) CHECK(bitwise_equal(graph[i], eager[i]));
  }
}

TEST_CASE("cuda decoding: a block's step in few kernels is its norm and its step, and the state goes on",
          "[gpu][small]") {
  if (no_gpu()) return;
  using layers::Mamba2Options;
  const int64_t batch = GENERATE(1, 3, 4, 5);  // 5: too many
  // One past the columns of a block; widths of d_model beyond a block's threads and parts; what has kernels of its own.
  const Mamba2Options o = GENERATE(
      Mamba2Options{.d_model = 64, .d_state = 16, .head_dim = 16},
      Mamba2Options{.d_model = 72, .d_state = 8, .d_conv = 2, .head_dim = 8},
      Mamba2Options{.d_model = 1032, .d_state = 24, .head_dim = 8, .norm_before_gate = true},
      Mamba2Options{.d_model = 64, .d_state = 16, .head_dim = 16, .groups = 2},
      Mamba2Options{.d_model = 64, .d_state = 16, .head_dim = 16, .d_ssm = 64, .conv_bias = false},
      Mamba2Options{.d_model = 64, .d_state = 16, .d_conv = 5, .head_dim = 16},
      Mamba2Options{.d_model = 64, .d_state = 16, .head_dim = 16, .rms_norm = false, .bias = true});
  Params params(Device::cuda, {.seed = 3, .compute = DType::bf16});
  const layers::RmsNorm norm(params / "norm", o.d_model);
  const layers::Mamba2 block(params / "mixer", Mesh{}, o);
  for (const Param& p : params.all())  // norms and biases away from one and zero
    if (p.shape.rank() == 1 && p.name.find("A_log") == std::string::npos && p.name.find("dt_bias") == std::string::npos)
      copy(random_normal(p.shape, 9, 0.3, 1, DType::f32), p.value);
  layers::Mamba2State few = block.zero_state(batch), many = block.zero_state(batch);
  for (int step = 0; step < 6; ++step) {
    const auto input = [&](uint64_t seed, DType type) {
      const Tensor numbers = random_normal({batch, o.d_model}, seed + 10 * static_cast<uint64_t>(step));
      return to_device(to(numbers, type), Device::cuda);
    };
    const Tensor x = input(1, DType::bf16), residual = step == 2 ? Tensor() : input(2, DType::f32);
    NoGrad none;
    const auto [out, sum] = block.step(norm, x, residual, few);
    const auto [u, expected_sum] = norm(x, residual);
    const Tensor expected = block.step(u, many);
    INFO("batch " << batch << ", d_model " << o.d_model << ", groups " << o.groups << ", step " << step);
    const auto differs = [](const Tensor& a, const Tensor& b) {
      return relative_rms(to_device(a, Device::cpu), to_device(b, Device::cpu));
    };
    CHECK(bitwise_equal(sum, expected_sum));
    // Sums in another order, and with them bf16 roundings of the norm, of p, of y and of out: 2^-9 each, at most.
    CHECK(differs(out, expected) < 1e-2);
    CHECK(differs(few.ssm, many.ssm) < 1e-2);
    CHECK(differs(few.conv, many.conv) < 4e-3);
  }
}

TEST_CASE("cuda captured: prompts of unequal length go on as each alone", "[gpu]") {
  for (const Place& place : gpu_places()) {
    INFO(name(place));
    Params params(place.device, {.seed = 3, .compute = place.type});
    const LanguageModel model(params, Mesh{}, small());
    layers::Texts prompts;
    for (const size_t length : {1, 63, 64, 65, 200, 131}) {
      prompts.emplace_back(length);
      for (size_t t = 0; t < length; ++t) prompts.back()[t] = static_cast<int32_t>((t * t + length) % vocabulary);
    }
    const layers::Prefilled all = layers::prefill(model, prompts);
    for (size_t s = 0; s < prompts.size(); ++s) {
      const layers::Prefilled one = layers::prefill(model, {prompts[s]});
      const auto row = static_cast<int64_t>(s);
      const auto differs = [&](const Tensor& a, const Tensor& b) {
        return relative_rms(to_device(contiguous(a.slice_first(row, row + 1)), Device::cpu), to_device(b, Device::cpu));
      };
      // Chunks begin elsewhere: other roundings, as between decoding and the forward pass.
      const double tolerance = place.type == DType::bf16 ? 3e-2 : 1e-4;
      INFO("prompt " << s);
      CHECK(differs(all.logits, one.logits) < tolerance);
      for (size_t i = 0; i < all.state.size(); ++i) CHECK(differs(all.state[i].ssm, one.state[i].ssm) < tolerance);
    }
    const auto text = layers::generate(model, prompts, {.tokens = 9, .sampler = {.temperature = 0}});
    for (const auto& t : text) CHECK(t.size() == 9);
  }
}

TEST_CASE("cuda captured: a training step as a graph has the losses and weights of one kernel by kernel", "[gpu]") {
  for (const Place& place : gpu_places()) {
    INFO(name(place));
    Training eager(place), graph(place);
    CHECK(graph.run(true) == eager.run(false));
    for (size_t i = 0; i < eager.params.all().size(); ++i)
      CHECK(bitwise_equal(graph.params.all()[i].value, eager.params.all()[i].value));
    CHECK(graph.optimizer.counts().applied == 10);
  }
}
