#include "adder/kernels/gated_rms_norm.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/rms_norm.h"
#include "adder/kernels/view.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <omp.h>

#include <cmath>

using namespace adder;

namespace {

// From other operators: groups as rows, the weight applied last.
Tensor composed(const Tensor& y, const Tensor& z, const Tensor& weight, int64_t groups, bool norm_first) {
  const int64_t n = weight.size(0) / groups, rows = y.count() / weight.size(0);
  const Tensor v = norm_first ? y : apply(SiluMultiply{.y = y, .gate = z});
  const Tensor normed = apply(RmsNorm{.x = contiguous(v).reshape({rows, groups, n}), .residual = {},
                                      .weight = full({n}, 1, DType::f64)})[0];
  const auto x = to_host(normed), w = to_host(weight);
  std::vector<double> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * w[i % w.size()];
  const Tensor scaled = from_host(y.shape(), out, DType::f64);
  return norm_first ? apply(SiluMultiply{.y = scaled, .gate = z}) : scaled;
}

}  // namespace

TEST_CASE("gated_rms_norm: equals the gate and the norm apart, in groups, z with rows apart") {
  const bool norm_first = GENERATE(false, true);
  const int64_t groups = GENERATE(1, 3, 12);
  const Shape shape{2, 33, 12};
  const Tensor y = random_normal(shape, 1), weight = random_normal({12}, 3, 0.3, 1);
  const Tensor z = random_normal({2, 33, 20}, 2).slice_last(5, 17);
  const auto f = [&](DType type) {
    return apply(GatedRmsNorm{.y = to(y, type), .z = to(z, type), .weight = to(weight, type), .groups = groups,
                              .norm_before_gate = norm_first});
  };
  const Tensor out = f(DType::f64);
  // A few roundings of numbers up to 50.
  CHECK(max_difference(out, composed(y, z, weight, groups, norm_first)) < 1e-13);
  CHECK(relative_rms(f(DType::f32), out) < 1e-6);  // a few f32 roundings, inputs included
}

TEST_CASE("gated_rms_norm: gradients of y, z and weight") {
  const bool norm_first = GENERATE(false, true);
  const auto [shape, groups] = GENERATE(table<Shape, int64_t>({{Shape{1}, 1}, {Shape{3, 7}, 1}, {Shape{3, 6}, 2},
                                                               {Shape{65, 4}, 4}, {Shape{2, 2, 17}, 1}}));
  // A group of one channel is smooth only on the scale of eps: not the default here.
  const auto f = [&, g = groups](std::span<const Tensor> t) {
    return std::vector{apply(GatedRmsNorm{.y = apply(Scale{.x = t[0], .factor = 2}), .z = t[1], .weight = t[2],
                                          .groups = g, .norm_before_gate = norm_first, .eps = 0.1}),
                       t[0], t[1], t[2]};  // used once more: gradients are also added to
  };
  const Tensor weight = random_normal({shape[-1]}, 3, 0.3, 1);
  const auto g = check_gradients(f, {random_normal(shape, 1), random_normal(shape, 2), weight});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("gated_rms_norm: only what is wanted is computed, into slots and from gradients with rows apart") {
  const bool norm_first = GENERATE(false, true);
  const Tensor wide = random_normal({5, 17}, 1), w = random_normal({6}, 2);
  const Tensor d = random_normal({5, 9}, 3).slice_last(1, 7);
  const auto run = [&](bool want_parts, bool want_weight) {
    const Tensor x = want_parts ? leaf(wide) : wide, lw = want_weight ? leaf(w) : w;
    const auto parts = apply(Split{.x = x, .sizes = {6, 5, 6}});
    const Tensor out = apply(GatedRmsNorm{.y = parts[2], .z = parts[0], .weight = lw, .groups = 2,
                                          .norm_before_gate = norm_first});
    backward({&out, 1}, {&d, 1});
    return std::array{want_parts ? gradient(x) : Tensor(), want_weight ? gradient(lw) : Tensor()};
  };
  const auto all = run(true, true);
  CHECK(bitwise_equal(run(true, false)[0], all[0]));
  CHECK(bitwise_equal(run(false, true)[1], all[1]));
  CHECK(max_difference(all[0].slice_last(6, 11), zeros({5, 5}, DType::f64)) == 0);
}

TEST_CASE("gated_rms_norm: gradients are added to those that are there") {
  const bool norm_first = GENERATE(false, true);
  const Tensor y = leaf(random_normal({5, 6}, 1)), z = leaf(random_normal({5, 6}, 2)), w = leaf(random_normal({6}, 3));
  const Tensor d = random_normal({5, 6}, 4);
  const auto run = [&](int times) {
    for (const Tensor& t : {y, z, w}) clear_gradient(t);
    for (int i = 0; i < times; ++i) {
      const Tensor out = apply(GatedRmsNorm{.y = y, .z = z, .weight = w, .norm_before_gate = norm_first});
      backward({&out, 1}, {&d, 1});
    }
    return std::array{clone(gradient(y)), clone(gradient(z)), clone(gradient(w))};
  };
  const auto once = run(1), twice = run(2);
  for (size_t i = 0; i < 3; ++i) {
    auto doubled = to_host(once[i]);
    for (double& g : doubled) g *= 2;
    CHECK(max_difference(twice[i], from_host(once[i].shape(), doubled, DType::f64)) == 0);
  }
}

TEST_CASE("gated_rms_norm: f32 gradients agree with f64, whatever the number of threads") {
  const bool norm_first = GENERATE(false, true);
  const Shape shape{200, 130};
  const auto run = [&](DType type, int threads) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    const Tensor y = leaf(to(random_normal(shape, 1), type)), z = leaf(to(random_normal(shape, 2), type)),
                 w = leaf(to(random_normal({130}, 3), type)), d = to(random_normal(shape, 4), type);
    const Tensor out = apply(GatedRmsNorm{.y = y, .z = z, .weight = w, .groups = 2, .norm_before_gate = norm_first});
    backward({&out, 1}, {&d, 1});
    omp_set_num_threads(before);
    return std::array{gradient(y), gradient(z), gradient(w)};
  };
  const auto exact = run(DType::f64, 2), one = run(DType::f32, 1), three = run(DType::f32, 3);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(relative_rms(one[i], exact[i]) < 2e-6);  // sums of 200 f32 numbers, inputs rounded
    CHECK(bitwise_equal(one[i], three[i]));
  }
}

TEST_CASE("gated_rms_norm: keeps y, z and the weight, and names wrong shapes") {
  const int64_t before = memory_use(Device::cpu).in_use, one = 16 * 64 * 8;
  const Tensor out = apply(GatedRmsNorm{.y = leaf(random_normal({16, 64}, 1)), .z = leaf(random_normal({16, 64}, 2)),
                                        .weight = full({64}, 1, DType::f64)});
  CHECK(memory_use(Device::cpu).in_use - before == 3 * one + 64 * 8);  // with the output
  const Tensor y = random_normal({2, 6}, 1), w = random_normal({6}, 2);
  CHECK_THROWS_WITH(apply(GatedRmsNorm{.y = y, .z = y, .weight = w, .groups = 4}),
                    Catch::Matchers::Equals("GatedRmsNorm: 6 channels in 4 groups"));
  CHECK_THROWS_WITH(apply(GatedRmsNorm{.y = y, .z = w, .weight = w}),
                    Catch::Matchers::Equals("GatedRmsNorm: y f64 [2, 6] but z f64 [6]"));
  CHECK_THROWS_WITH(apply(GatedRmsNorm{.y = y, .z = y, .weight = y}),
                    Catch::Matchers::Equals("GatedRmsNorm: y f64 [2, 6] but weight f64 [2, 6]"));
}

namespace {

// Against f64, y and z with rows apart; beside bf16 the weight stays f32. Gradients are also added to.
void check_place(const Place& place, const Shape& shape, int64_t groups, bool norm_first) {
  const int64_t n = shape[-1];
  const auto f = [&](std::span<const Tensor> t) {
    const auto parts = apply(Split{.x = t[0], .sizes = {n, 8, n}});
    return std::vector{apply(GatedRmsNorm{.y = parts[2], .z = parts[0], .weight = t[1], .groups = groups,
                                          .norm_before_gate = norm_first, .eps = 0.1}),
                       parts[2], parts[1], t[1]};
  };
  const Tensor weight = to(random_normal({n}, 3, 0.3, 1), DType::f32);
  check_at(place, f, {random_normal(shape.with(-1, 2 * n + 8), 1), weight}, 2e-6);  // sums of 8200 f32 numbers
}

}  // namespace

TEST_CASE("gated_rms_norm: every backend agrees with f64, in groups, gate or norm first", "[gpu][small]") {
  const auto [shape, groups] = GENERATE(table<Shape, int64_t>({{Shape{1, 1}, 1}, {Shape{3, 7}, 1}, {Shape{5, 34}, 2},
                                                               {Shape{65, 24}, 3}, {Shape{2, 17, 512}, 1},
                                                               {Shape{5, 8448}, 1056}}));  // two rows a block
  const Place place = GENERATE(from_range(places()));
  const bool norm_first = GENERATE(false, true);
  check_place(place, shape, groups, norm_first);
}

TEST_CASE("gated_rms_norm: every backend agrees with f64 at odd and production sizes", "[gpu]") {
  // One row past a block's on the GPU; one channel past a thread's piece or pieces, in bf16 and f32; wide rows.
  const auto [shape, groups] = GENERATE(table<Shape, int64_t>({{Shape{4225, 40}, 1}, {Shape{2113, 48}, 2},
                                                               {Shape{2113, 257}, 1}, {Shape{3, 513}, 1},
                                                               {Shape{2, 769}, 1}, {Shape{3, 776}, 1},
                                                               {Shape{2, 6145}, 1}, {Shape{2, 8200}, 1},
                                                               {Shape{2, 512, 1536}, 1}, {Shape{265, 4096}, 1}}));
  const Place place = GENERATE(from_range(places()));
  const bool norm_first = GENERATE(false, true);
  if (place.device == Device::cuda && place.type == DType::f32 && shape[-1] > 8192)
    CHECK_THROWS_WITH(check_place(place, shape, groups, norm_first), ContainsSubstring("8192 in f32"));
  else
    check_place(place, shape, groups, norm_first);
}

TEST_CASE("gated_rms_norm: NaN in one row reaches no other, and ten runs are equal bit for bit", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const auto there = [&](uint64_t seed) {
    return to_device(random_normal({5, 72}, seed, 1, 0, place.type), place.device);
  };
  const Tensor w = to_device(random_normal({72}, 3, 1, 0, DType::f32), place.device), d = there(4);
  const auto run = [&](bool nan) {
    const Tensor y = leaf(there(1)), z = leaf(there(2));
    if (nan) fill(z.slice_first(2, 3), std::nan(""));
    const Tensor out = apply(GatedRmsNorm{.y = y, .z = z, .weight = leaf(w), .groups = 3});
    backward({&out, 1}, {&d, 1});
    return std::array{out.detach(), gradient(y), gradient(z)};
  };
  const auto clean = run(false), dirty = run(true);
  for (int i = 0; i < 9; ++i)
    for (size_t k = 0; const Tensor& t : run(false)) CHECK(bitwise_equal(t, clean[k++]));
  for (size_t k = 0; k < clean.size(); ++k) {
    CHECK(bitwise_equal(dirty[k].slice_first(0, 2), clean[k].slice_first(0, 2)));
    CHECK(bitwise_equal(dirty[k].slice_first(3, 5), clean[k].slice_first(3, 5)));
    CHECK(std::isnan(to_host(dirty[k])[2 * 72]));
  }
}
