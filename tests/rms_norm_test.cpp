#include "adder/kernels/rms_norm.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/view.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <omp.h>

#include <cmath>

using namespace adder;

namespace {

Tensor naive(const Tensor& s, const Tensor& weight, double eps) {
  auto y = to_host(s);
  const auto w = to_host(weight);
  const size_t n = w.size();
  for (size_t i = 0; i < y.size(); i += n) {
    double squares = 0;
    for (size_t j = 0; j < n; ++j) squares += y[i + j] * y[i + j];
    const double r = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
    for (size_t j = 0; j < n; ++j) y[i + j] *= r * w[j];
  }
  return from_host(s.shape(), y, DType::f64);
}

}  // namespace

TEST_CASE("rms_norm: is its formula, with and without a residual, rows apart or not") {
  const auto shape = GENERATE(Shape{1}, Shape{3, 7}, Shape{2, 65, 33});
  const int64_t n = shape[-1];
  const Tensor x = random_normal(shape.with(-1, n + 3), 1).slice_last(2, 2 + n), residual = random_normal(shape, 2);
  const Tensor weight = random_normal({n}, 3, 0.3, 1);
  const auto [y, s] = apply(RmsNorm{.x = x, .residual = residual, .weight = weight, .eps = 1e-3});
  CHECK(bitwise_equal(s, apply(Add{.a = x, .b = residual})));
  CHECK(max_difference(y, naive(s, weight, 1e-3)) < 1e-14);  // a sum of 33 numbers of order 1, normalised
  const auto [alone, same] = apply(RmsNorm{.x = x, .residual = {}, .weight = weight});
  CHECK(bitwise_equal(same, x));
  CHECK(max_difference(alone, naive(x, weight, 1e-5)) < 1e-14);
  const auto [rounded, sum] = apply(RmsNorm{.x = to(x, DType::f32), .residual = to(residual, DType::f32),
                                            .weight = to(weight, DType::f32), .eps = 1e-3});
  CHECK(relative_rms(rounded, y) < 5e-7);  // a few f32 roundings
}

TEST_CASE("rms_norm: gradients of both outputs, alone and together") {
  const auto shape = GENERATE(Shape{1}, Shape{3, 7}, Shape{65, 17});  // 65: one past a block of rows
  const bool residual = GENERATE(false, true);
  const int outputs = GENERATE(1, 2, 3);  // y, sum, both
  std::vector<Tensor> inputs = {random_normal(shape, 1), random_normal({shape[-1]}, 3, 0.3, 1)};
  if (residual) inputs.push_back(random_normal(shape, 2));
  const auto f = [&](std::span<const Tensor> t) {
    // Each input is used once more, so that gradients are also added to.
    const auto [y, s] = apply(RmsNorm{.x = apply(Scale{.x = t[0], .factor = 2}),
                                      .residual = residual ? apply(Scale{.x = t[2], .factor = 3}) : Tensor(),
                                      .weight = t[1], .eps = 0.1});  // one channel: smooth on the scale of eps
    std::vector<Tensor> result = {apply(Scale{.x = t[0], .factor = 0.5}), apply(Scale{.x = t[1], .factor = 0.5})};
    if (outputs & 1) result.push_back(y);
    if (outputs & 2) result.push_back(s);
    return result;
  };
  const auto g = check_gradients(f, inputs);
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("rms_norm: only what is wanted is computed, into slots and from gradients with rows apart") {
  const Shape shape{5, 6};
  const Tensor x = random_normal(shape, 1), residual = random_normal(shape, 2), weight = random_normal({6}, 3);
  const std::vector<Tensor> d = {random_normal({5, 9}, 4).slice_last(1, 7), random_normal({5, 8}, 5).slice_last(2, 8)};
  const auto run = [&](bool want_x, bool want_residual, bool want_weight) {
    const Tensor lx = want_x ? leaf(x, zeros({5, 7}, DType::f64).slice_last(1, 7)) : x;
    const Tensor lr = want_residual ? leaf(residual) : residual, lw = want_weight ? leaf(weight) : weight;
    const auto y = apply(RmsNorm{.x = lx, .residual = lr, .weight = lw});
    backward(y, d);
    return std::array{want_x ? clone(gradient(lx)) : Tensor(), want_residual ? gradient(lr) : Tensor(),
                      want_weight ? gradient(lw) : Tensor()};
  };
  const auto all = run(true, true, true);
  CHECK(bitwise_equal(run(true, false, false)[0], all[0]));
  CHECK(bitwise_equal(run(false, true, false)[1], all[1]));
  CHECK(bitwise_equal(run(false, false, true)[2], all[2]));
  CHECK(bitwise_equal(all[0], all[1]));
}

TEST_CASE("rms_norm: f32 gradients agree with f64, whatever the number of threads") {
  const Shape shape{200, 129};
  const auto run = [&](DType type, int threads) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    const Tensor x = leaf(to(random_normal(shape, 1), type)), w = leaf(to(random_normal({129}, 2), type));
    const auto y = apply(RmsNorm{.x = x, .residual = to(random_normal(shape, 3), type), .weight = w});
    const std::array d = {to(random_normal(shape, 4), type), Tensor()};
    backward(y, d);
    omp_set_num_threads(before);
    return std::array{gradient(x), gradient(w)};
  };
  const auto exact = run(DType::f64, 2), one = run(DType::f32, 1), three = run(DType::f32, 3);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(relative_rms(one[i], exact[i]) < 1e-6);  // sums of 200 f32 numbers, inputs rounded
    CHECK(bitwise_equal(one[i], three[i]));
  }
}

TEST_CASE("rms_norm: keeps the sum and the weight, and names wrong shapes") {
  const int64_t before = memory_use(Device::cpu).in_use, one = 16 * 64 * 8;
  const auto y = apply(RmsNorm{.x = leaf(random_normal({16, 64}, 1)), .residual = random_normal({16, 64}, 2),
                               .weight = full({64}, 1, DType::f64)});
  CHECK(memory_use(Device::cpu).in_use - before == 2 * one + 64 * 8);  // y and the sum, which is also what is kept
  const Tensor x = random_normal({2, 3}, 1), w = random_normal({4}, 2);
  CHECK_THROWS_WITH(apply(RmsNorm{.x = x, .residual = {}, .weight = w}),
                    Catch::Matchers::Equals("RmsNorm: x f64 [2, 3] on cpu but weight f64 [4] on cpu"));
  CHECK_THROWS_WITH(apply(RmsNorm{.x = x, .residual = w, .weight = w.slice_last(0, 3)}),
                    Catch::Matchers::Equals("RmsNorm: x f64 [2, 3] on cpu but residual f64 [4] on cpu"));
}

namespace {

// Against f64, x with rows apart. The stream and the weight stay f32 where x is bf16, and gradients are also added to.
void check_place(const Place& place, const Shape& shape, bool residual, int outputs) {
  const auto f = [&](std::span<const Tensor> t) {
    const auto parts = apply(Split{.x = t[0], .sizes = {8, shape[-1]}});
    const auto [y, s] = apply(RmsNorm{.x = parts[1], .residual = t[2], .weight = t[1], .eps = 0.1});
    return std::vector{outputs & 1 ? y : Tensor(), outputs & 2 ? s : Tensor(), parts[0], t[0], t[1], t[2]};
  };
  const Tensor x = random_normal(shape.with(-1, shape[-1] + 8), 1), weight = random_normal({shape[-1]}, 3, 0.3, 1);
  check_at(place, f, {x, to(weight, DType::f32), residual ? random_normal(shape, 2, 1, 0, DType::f32) : Tensor()},
           2e-6);  // sums of 8200 f32 numbers
}

}  // namespace

TEST_CASE("rms_norm: every backend agrees with f64, each output alone and both", "[gpu][small]") {
  const auto shape = GENERATE(Shape{1, 1}, Shape{3, 7}, Shape{65, 17}, Shape{5, 768});
  const Place place = GENERATE(from_range(places()));
  const bool residual = GENERATE(false, true);
  const int outputs = GENERATE(1, 2, 3);
  check_place(place, shape, residual, outputs);
}

TEST_CASE("rms_norm: every backend agrees with f64 at odd and production sizes", "[gpu]") {
  // One row past a block's on the GPU; one channel past a thread's piece or pieces; wide rows.
  const auto shape = GENERATE(Shape{3169, 40}, Shape{2, 129}, Shape{3, 257}, Shape{3, 769}, Shape{5, 1024},
                              Shape{2, 2049}, Shape{3, 8200}, Shape{2, 512, 768});
  const Place place = GENERATE(from_range(places()));
  const bool residual = GENERATE(false, true);
  check_place(place, shape, residual, 3);
}

TEST_CASE("rms_norm: NaN in one row reaches no other, and ten runs are equal bit for bit", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const Shape shape{5, 72};
  const auto there = [&](uint64_t seed, DType type) {
    return to_device(random_normal(shape, seed, 1, 0, type), place.device);
  };
  const Tensor w = to_device(random_normal({72}, 3, 1, 0, DType::f32), place.device);
  const auto run = [&](bool nan) {
    const Tensor x = leaf(to(there(1, DType::f32), place.type)), r = leaf(there(2, DType::f32));
    if (nan) fill(x.slice_first(2, 3), std::nan(""));
    const auto out = apply(RmsNorm{.x = x, .residual = r, .weight = leaf(w)});
    backward(out, std::array{to(there(4, DType::f32), place.type), there(5, DType::f32)});
    return std::array{out[0].detach(), out[1].detach(), gradient(x), gradient(r)};
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

TEST_CASE("rms_norm: y made again from s has the same bits", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t channels = GENERATE(1, 7, 72, 768, 1001);
  const bool residual = GENERATE(false, true);
  const auto there = [&](uint64_t seed, const Shape& shape) {
    return to_device(random_normal(shape, seed, 1, 0, DType::f32), place.device);
  };
  const Tensor w = there(3, {channels}), x = to(there(1, {5, channels}), place.type);
  fill(x.slice_first(1, 2), -0.0);
  const auto [y, s] = apply(RmsNorm{.x = x, .residual = residual ? there(2, {5, channels}) : Tensor(), .weight = w});
  CHECK(bitwise_equal(rms_norm_again({.sum = s, .weight = w, .eps = 1e-5, .type = y.dtype()}), y));
}

TEST_CASE("rms_norm: beside bf16 the stream and the weight are f32") {
  const Tensor x({2, 3}, DType::bf16), w({3}, DType::bf16), r({2, 3}, DType::bf16);
  CHECK_THROWS_WITH(apply(RmsNorm{.x = x, .residual = {}, .weight = w}),
                    Catch::Matchers::Equals("RmsNorm: x bf16 [2, 3] on cpu but weight bf16 [3] on cpu"));
  CHECK_THROWS_WITH(apply(RmsNorm{.x = x, .residual = r, .weight = zeros({3})}),
                    Catch::Matchers::Equals("RmsNorm: x bf16 [2, 3] on cpu but residual bf16 [2, 3] on cpu"));
}
