#include "adder/autograd/gradient_check.h"
#include "adder/core/error.h"
#include "adder/layers/mamba2.h"

#include "catch.h"

using namespace adder;
using layers::Context;
using layers::Mamba2;
using layers::Mamba2Options;
using layers::Mamba2State;
using layers::Recompute;

namespace {

constexpr Params::Options exact{.seed = 3, .dtype = DType::f64};

// Long time steps, slow decay: what the norm divides by is not small, no gradient vanishes, differences are accurate.
Mamba2Options tiny() {
  return {.d_model = 6, .d_state = 3, .d_conv = 3, .expand = 2, .head_dim = 2, .groups = 1, .A_min = 0.1, .A_max = 1,
          .dt_init_min = 0.5, .dt_init_max = 2, .chunk = 4};
}

// Every option of the block away from its default, one at a time.
std::vector<Mamba2Options> variants() {
  std::vector<Mamba2Options> all(10, tiny());
  all[1].groups = 2;
  all[2].d_ssm = 8;
  all[3].rms_norm = false;
  all[4].norm_before_gate = true;
  all[5].D_per_channel = true;
  all[6].bias = true;
  all[7].conv_bias = false;
  all[8].groups = 2, all[8].norm_groups = 1;
  all[9].dt_min = 0.7, all[9].dt_max = 1.1;
  return all;
}

// Token t of [batch, time, channel].
Tensor token(const Tensor& x, int64_t t) {
  const int64_t n = x.size(2);
  return clone(x.reshape({x.size(0), x.size(1) * n}).slice_last(t * n, (t + 1) * n));
}

Tensor span_of(const Tensor& x, int64_t begin, int64_t end) {
  const int64_t n = x.size(2);
  return clone(x.reshape({x.size(0), x.size(1) * n}).slice_last(begin * n, end * n))
      .reshape({x.size(0), end - begin, n});
}

}  // namespace

TEST_CASE("mamba2: gradients of the input and of every parameter, every option") {
  for (const Mamba2Options& o : variants()) {
    Params params(Device::cpu, exact);
    const Mamba2 block(params, Mesh{}, o);
    const Tensor u = random_normal({2, 7, o.d_model}, 1),
                 document = from_host({2, 7}, std::vector<int32_t>{0, 0, 1, 1, 1, 0, 0, 5, 5, 5, 5, 5, 5, 5});
    // The parameters' tensors replaced by the checker's: members of a copy of the block.
    const auto with = [&](std::span<const Tensor> t) {
      Mamba2 copy = block;
      copy.in_proj = t[1], copy.conv.weight = t[2], copy.A_log = t[3], copy.dt_bias = t[4], copy.D = t[5];
      copy.out_proj.weight = t[6], copy.norm = t[7], copy.in_bias = t[8], copy.conv.bias = t[9],
      copy.out_proj.bias = t[10];
      return std::vector{copy(t[0], {.document = document})};
    };
    const auto g = check_gradients(with, {u, block.in_proj.detach(), block.conv.weight.detach(), block.A_log.detach(),
                                          block.dt_bias.detach(), block.D.detach(), block.out_proj.weight.detach(),
                                          block.norm.detach(), block.in_bias.detach(), block.conv.bias.detach(),
                                          block.out_proj.bias.detach()});
    INFO(g.worst);
    CHECK(g.error < 1e-6);
  }
}

TEST_CASE("mamba2: decoding token by token equals the forward pass at every position, every option") {
  for (const Mamba2Options& o : variants()) {
    Params params(Device::cpu, exact);
    const Mamba2 block(params, Mesh{}, o);
    const Tensor u = random_normal({2, 9, o.d_model}, 1), y = block(u);
    Mamba2State state = block.zero_state(2);
    for (int64_t t = 0; t < 9; ++t) CHECK(relative_rms(block.step(token(u, t), state), token(y, t)) < 1e-12);
  }
}

TEST_CASE("mamba2: a sequence in two parts with carried state equals one run") {
  Params params(Device::cpu, exact);
  const Mamba2 block(params, Mesh{}, tiny());
  const Tensor u = random_normal({2, 9, 6}, 1), y = block(u);
  for (const int64_t cut : {1, 2, 5, 8}) {
    Mamba2State state;
    const Tensor first = block(span_of(u, 0, cut), state), second = block(span_of(u, cut, 9), state);
    CHECK(relative_rms(first, span_of(y, 0, cut)) < 1e-12);
    CHECK(relative_rms(second, span_of(y, cut, 9)) < 1e-12);
  }
}

TEST_CASE("mamba2: initial values are those of the paper") {
  Params params(Device::cpu);
  const Mamba2 block(params, Mesh{}, {.d_model = 128, .d_state = 16, .head_dim = 4});
  for (double a : to_host(block.A_log)) CHECK((a >= 0 && a <= std::log(16.0) + 1e-6));
  for (double b : to_host(block.dt_bias)) {
    const double delta = std::log1p(std::exp(b));
    CHECK((delta > 0.999e-3 && delta < 0.1001));
  }
  double most = 0;
  for (double w : to_host(block.in_proj)) most = std::max(most, std::abs(w));
  CHECK(most <= 1 / std::sqrt(128.0));
  CHECK(most > 0.99 / std::sqrt(128.0));
  for (const Param& p : params.all())
    if (p.name == "A_log" || p.name == "D" || p.name == "dt_bias" || p.name == "norm/weight" || p.name == "conv/bias/x")
      CHECK_FALSE(p.options.decay);
    else if (p.name == "in_proj/weight/x" || p.name == "conv/weight/x" || p.name == "out_proj/weight")
      CHECK(p.options.decay);
}

TEST_CASE("mamba2: the tape holds what the header says") {
  Params params(Device::cpu);
  const Mamba2 block(params, Mesh{}, {.d_model = 32, .d_state = 16, .head_dim = 8, .groups = 2, .chunk = 32});
  const Tensor u = random_normal({2, 64, 32}, 1, 1, 0, DType::f32);
  for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::scan}) {
    const int64_t before = memory_use(Device::cpu).in_use;
    const int64_t tokens = 128, d_inner = 64, bc = 2 * 2 * 16, heads = 8, entered = 2;
    const Tensor y = block(u, {.recompute = recompute});
    int64_t floats = tokens * (2 * d_inner + bc + heads) + entered * d_inner * 16;
    if (recompute != Recompute::scan) floats += tokens * d_inner;
    if (recompute == Recompute::none) floats += tokens * (d_inner + bc) + tokens * d_inner;
    const int64_t held = memory_use(Device::cpu).in_use - before - y.count() * 4;
    CHECK(held >= floats * 4);
    CHECK(held < floats * 4 * 1.07);  // the pool rounds sizes up by at most an eighth, here by less
  }
}

TEST_CASE("mamba2: what is made again in backward has the same bits, every option, with a state and documents") {
  for (const Mamba2Options& o : variants()) {
    std::vector<Tensor> expected;
    for (const Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::scan}) {
      Params params(Device::cpu, {.seed = 3});
      const Mamba2 block(params, Mesh{}, o);
      const Tensor u = leaf(random_normal({2, 7, o.d_model}, 1, 1, 0, DType::f32));
      const std::vector<int32_t> documents = {0, 0, 1, 1, 1, 0, 0, 5, 5, 5, 5, 5, 5, 5};
      const Context context{.document = from_host({2, 7}, documents), .recompute = recompute};
      Mamba2State state = block.zero_state(2);
      fill(state.conv, 0.5);
      fill(state.ssm, -0.25);
      const Tensor y = block(block(u, state, context), state, context);  // gradients go through the state as well
      const Tensor dy = random_normal(y.shape(), 2, 1, 0, DType::f32);
      backward({&y, 1}, {&dy, 1});
      std::vector<Tensor> got = {y.detach(), gradient(u)};
      for (const Param& p : params.all()) got.push_back(p.gradient);
      if (expected.empty()) expected = got;
      for (size_t i = 0; i < got.size(); ++i) CHECK(bitwise_equal(got[i], expected[i]));
    }
  }
}

TEST_CASE("mamba2: sizes that do not fit are named") {
  Params params(Device::cpu);
  CHECK_THROWS_WITH(Mamba2(params, Mesh{}, {.d_model = 6, .head_dim = 5}),
                    Catch::Matchers::Equals("Mamba2: 12 channels cannot be cut into heads of 5"));
  CHECK_THROWS_WITH(Mamba2(params, Mesh{}, {.d_model = 6, .head_dim = 2, .groups = 4}),
                    Catch::Matchers::Equals("Mamba2: 6 heads cannot share 4 groups"));
}
