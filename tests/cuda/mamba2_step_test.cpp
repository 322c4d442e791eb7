// The kernels of a Mamba-2 block's decoding step one by one; as parts of a block they are in graph_test.cpp.
#include "adder/kernels/mamba2_step.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/device.h"
#include "adder/kernels/gated_rms_norm.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/rms_norm.h"
#include "adder/tests/places.h"

using namespace adder;

namespace {

Tensor on_gpu(const Shape& shape, uint64_t seed, double scale, DType type = DType::bf16) {
  return to_device(to(random_normal(shape, seed, scale), type), Device::cuda);
}

}  // namespace

// 40 KiB of shared memory beside the product's own 8: more than a kernel has unless it is asked for.
TEST_CASE("mamba2 step: out starts at the most shared memory that it takes", "[gpu]") {
  if (no_gpu()) return;
  const auto [rows, channels] = GENERATE(table<int64_t, int64_t>({{2, 10240}, {4, 5120}}));
  constexpr int64_t width = 2048;  // from here on in wide blocks
  const Tensor y = on_gpu({rows, channels}, 1, 1), z = on_gpu({rows, channels}, 2, 1);
  const Tensor norm = on_gpu({channels}, 3, 1, DType::f32), weight = on_gpu({width, channels}, 4, 0.02);
  const Mamba2StepOut out{.y = y, .z = z, .norm = norm, .eps = 1e-5, .norm_before_gate = false, .weight = weight};
  INFO(rows << " rows of " << channels << " channels");
  REQUIRE(fits(out));
  NoGrad none;
  const Tensor normed = apply(GatedRmsNorm{.y = y, .z = z, .weight = norm, .eps = 1e-5});
  const Tensor expected = apply(Matmul{.x = normed, .weight = weight, .bias = {}});
  const Tensor got = mamba2_step_out(Cuda{compute_stream()}, out);
  // Sums in another order, and with them bf16 roundings of the norm and of out: 2^-9 each, at most.
  CHECK(relative_rms(to_device(got, Device::cpu), to_device(expected, Device::cpu)) < 4e-3);
}

// Blocks of 8, 16 and 24 parts, the last one not full.
TEST_CASE("mamba2 step: in is the norm and the product, however many parts there are", "[gpu][small]") {
  if (no_gpu()) return;
  const auto [rows, parts] = GENERATE(table<int64_t, int64_t>({{1, 1033}, {4, 2051}, {1, 8201}, {3, 8201}}));
  constexpr int64_t d_model = 64, channels = 16;
  const Tensor weight = on_gpu({parts, d_model}, 1, 0.1), norm = on_gpu({d_model}, 2, 1, DType::f32);
  const Tensor x = on_gpu({rows, d_model}, 3, 2), residual = on_gpu({rows, d_model}, 4, 2, DType::f32);
  const CausalConv1dStep conv{.x = {}, .state = zeros({rows, 3, channels}, DType::bf16, Device::cuda),
                              .weight = on_gpu({channels, 4}, 5, 1, DType::f32), .bias = {}};
  const Mamba2StepIn in{.x = x, .residual = residual, .norm = norm, .eps = 1e-5, .weight = weight, .conv = conv,
                        .first = 0};
  INFO(rows << " rows, " << parts << " parts");
  REQUIRE(fits(in));
  NoGrad none;
  const auto [normed, sum] = apply(RmsNorm{.x = x, .residual = residual, .weight = norm, .eps = 1e-5});
  const Tensor expected = apply(Matmul{.x = normed, .weight = weight, .bias = {}});
  const auto [p, s] = mamba2_step_in(Cuda{compute_stream()}, in);
  CHECK(bitwise_equal(s, sum));
  const auto plain = [&](const Tensor& t) { return to_device(contiguous(t.slice_last(channels, parts)), Device::cpu); };
  CHECK(relative_rms(plain(p), plain(expected)) < 4e-3);  // two bf16 roundings, 2^-9 each, at most
}

TEST_CASE("mamba2 step: its convolution has the bits of the convolution's own step", "[gpu][small]") {
  if (no_gpu()) return;
  constexpr int64_t rows = 3, channels = 128, d_model = 64, width = 4;
  const Tensor half = on_gpu({channels, d_model}, 1, 0.5), weight({2 * channels, d_model}, DType::bf16, Device::cuda);
  copy(half, weight.slice_first(0, channels));  // what goes through the convolution ...
  copy(half, weight.slice_first(channels, 2 * channels));  // ... and again, to see what that was
  const Tensor taps = on_gpu({channels, width}, 2, 1, DType::f32), bias = on_gpu({channels}, 3, 1, DType::f32);
  const Tensor norm = on_gpu({d_model}, 4, 1, DType::f32);
  const Tensor state = on_gpu({rows, width - 1, channels}, 5, 1), expected_state = clone(state);
  for (uint64_t token = 0; token < 5; ++token) {
    const CausalConv1dStep conv{.x = {}, .state = state, .weight = taps, .bias = bias};
    const Mamba2StepIn in{.x = on_gpu({rows, d_model}, 6 + token, 3), .residual = {}, .norm = norm, .eps = 1e-5,
                          .weight = weight, .conv = conv, .first = 0};
    REQUIRE(fits(in));
    const Tensor p = mamba2_step_in(Cuda{compute_stream()}, in)[0];
    const Tensor y = causal_conv1d_step({.x = p.slice_last(channels, 2 * channels), .state = expected_state,
                                         .weight = taps, .bias = bias});
    CHECK(bitwise_equal(contiguous(p.slice_last(0, channels)), y));
    CHECK(bitwise_equal(state, expected_state));
  }
}

// Kernels that start before the one ahead of them is done, each reading what that one wrote and writing what it read.
TEST_CASE("mamba2 step: a chain of kernels that start early has the bits of one kernel at a time", "[gpu][small]") {
  if (no_gpu()) return;
  NoGrad none;
  constexpr int64_t rows = 2, d_model = 256, ssm = 512, channels = 64, parts = 2 * ssm;
  const Tensor in_weight = on_gpu({parts, d_model}, 1, 0.06), out_weight = on_gpu({d_model, ssm}, 2, 0.04);
  const Tensor norm = on_gpu({d_model}, 3, 1, DType::f32), inner_norm = on_gpu({ssm}, 4, 1, DType::f32);
  const Tensor taps = on_gpu({channels, 4}, 5, 0.5, DType::f32), start = on_gpu({rows, d_model}, 6, 1);
  const auto chain = [&](bool one_at_a_time) {
    const Tensor state = zeros({rows, 3, channels}, DType::bf16, Device::cuda), weight = clone(in_weight);
    Tensor x = clone(start), residual;
    const Cuda on{compute_stream()};
    const auto pause = [&] {
      if (one_at_a_time) synchronize();
    };
    for (int i = 0; i < 20; ++i) {
      if (i == 10) copy(out_weight.reshape({ssm, d_model}), weight.slice_first(0, ssm));  // right before it is read
      pause();
      const CausalConv1dStep conv{.x = {}, .state = state, .weight = taps, .bias = {}};
      const auto [p, sum] = mamba2_step_in(on, {.x = x, .residual = residual, .norm = norm, .eps = 1e-5,
                                                .weight = weight, .conv = conv, .first = 128});
      pause();
      x = mamba2_step_out(on, {.y = p.slice_last(0, ssm), .z = p.slice_last(ssm, parts), .norm = inner_norm,
                               .eps = 1e-5, .norm_before_gate = false, .weight = out_weight});
      pause();
      residual = sum;
    }
    return std::array{x, residual, state};
  };
  const auto expected = chain(true);
  for (int again = 0; again < 3; ++again) {
    const auto got = chain(false);
    for (size_t i = 0; i < got.size(); ++i) CHECK(bitwise_equal(got[i], expected[i]));
  }
}

TEST_CASE("mamba2 step: what is wrong does not fit", "[gpu][small]") {
  if (no_gpu()) return;
  const auto f32 = [](const Shape& shape) { return on_gpu(shape, 1, 1, DType::f32); };
  const Mamba2StepIn in{.x = on_gpu({2, 32}, 1, 1), .residual = f32({2, 32}), .norm = f32({32}), .eps = 1e-5,
                        .weight = on_gpu({48, 32}, 2, 1),
                        .conv = {.x = {}, .state = on_gpu({2, 3, 16}, 3, 1), .weight = f32({16, 4}), .bias = f32({16})},
                        .first = 32};
  CHECK(fits(in));
  const auto in_with = [&](auto&& change) {
    Mamba2StepIn other = in;
    change(other);
    return fits(other);
  };
  CHECK_FALSE(in_with([&](Mamba2StepIn& i) { i.norm = f32({24}); }));
  CHECK_FALSE(in_with([&](Mamba2StepIn& i) { i.residual = f32({2, 24}); }));
  CHECK_FALSE(in_with([](Mamba2StepIn& i) { i.first = 33; }));
  CHECK_FALSE(in_with([&](Mamba2StepIn& i) { i.conv.bias = f32({8}); }));
  CHECK_FALSE(in_with([](Mamba2StepIn& i) { i.conv.state = on_gpu({2, 2, 16}, 3, 1); }));
  const Mamba2StepOut out{.y = on_gpu({2, 32}, 1, 1), .z = on_gpu({2, 32}, 2, 1), .norm = f32({32}), .eps = 1e-5,
                          .norm_before_gate = false, .weight = on_gpu({16, 32}, 3, 1)};
  CHECK(fits(out));
  const auto out_with = [&](auto&& change) {
    Mamba2StepOut other = out;
    change(other);
    return fits(other);
  };
  CHECK_FALSE(out_with([&](Mamba2StepOut& o) { o.norm = f32({24}); }));
  CHECK_FALSE(out_with([](Mamba2StepOut& o) { o.y = on_gpu({2, 24}, 1, 1); }));
  CHECK_FALSE(out_with([](Mamba2StepOut& o) { o.z = on_gpu({1, 32}, 1, 1); }));
}
