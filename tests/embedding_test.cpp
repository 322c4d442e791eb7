#include "adder/kernels/embedding.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <omp.h>

#include <cmath>

using namespace adder;

namespace {
// Tokens of a small vocabulary, so that they repeat.
Tensor some_tokens(Shape shape, int32_t vocabulary) {
  std::vector<int32_t> t(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < t.size(); ++i)
    t[i] = static_cast<int32_t>((i * i * 7 + i * 3) % static_cast<size_t>(vocabulary));
  return from_host(shape, t);
}
}  // namespace

TEST_CASE("embedding: looks rows up, and gives each row the sum of its positions") {
  const int64_t channels = GENERATE(1, 5, 16, 33);
  const Tensor tokens = some_tokens({2, 9}, 6).slice_last(1, 8), weight = random_normal({6, channels}, 1);
  const auto f = [&](std::span<const Tensor> t) {
    return std::vector{apply(Embedding{.tokens = tokens, .weight = t[0]})};
  };
  const Tensor y = f(std::vector{weight})[0];
  REQUIRE(y.shape() == Shape{2, 7, channels});
  const auto ids = to_host(tokens);
  for (int64_t i = 0; i < 14; ++i) {
    const auto v = static_cast<int64_t>(ids[static_cast<size_t>(i)]);
    CHECK(bitwise_equal(y.reshape({14, channels}).slice_first(i, i + 1), weight.slice_first(v, v + 1)));
  }
  const auto g = check_gradients(f, {weight});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("embedding: the gradient overwrites or adds, and does not depend on the number of threads") {
  const Tensor tokens = some_tokens({3, 50}, 11), weight = random_normal({11, 48}, 1, 1, 0, DType::f32);
  const Tensor dy = random_normal({3, 50, 51}, 2, 1, 0, DType::f32).slice_last(1, 49);  // rows apart
  const auto run = [&](int threads) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    const Tensor w = leaf(weight, full({11, 48}, 99, DType::f32));  // what was there is overwritten
    const Tensor y = apply(Embedding{.tokens = tokens, .weight = w});
    backward({&y, 1}, {&dy, 1});
    omp_set_num_threads(before);
    return gradient(w);
  };
  const Tensor one = run(1);
  CHECK(bitwise_equal(run(2), one));
  CHECK(bitwise_equal(run(3), one));
  std::vector<double> expected(11 * 48);
  const auto ids = to_host(tokens), d = to_host(dy);
  for (size_t i = 0; i < ids.size(); ++i)
    for (size_t c = 0; c < 48; ++c) expected[static_cast<size_t>(ids[i]) * 48 + c] += d[i * 48 + c];
  CHECK(relative_rms(one, from_host({11, 48}, expected, DType::f64)) < 1e-6);  // sums of some 20 f32 numbers
}

TEST_CASE("embedding: keeps the tokens alone, and names a token outside the vocabulary") {
  const Tensor weight = random_normal({7, 64}, 1);
  const int64_t before = memory_use(Device::cpu).in_use;
  const Tensor y = apply(Embedding{.tokens = some_tokens({4, 64}, 7), .weight = leaf(weight)});
  CHECK(memory_use(Device::cpu).in_use - before == 4 * 64 * 64 * 8 + 4 * 64 * 4);
  CHECK_THROWS_WITH(apply(Embedding{.tokens = from_host({2, 2}, std::vector<int32_t>{0, 6, 1, 7}), .weight = weight}),
                    Catch::Matchers::Equals("Embedding: token 7 at [1, 1] is outside the vocabulary of 7"));
  CHECK_THROWS_WITH(apply(Embedding{.tokens = from_host({2}, std::vector<int32_t>{-1, 6}), .weight = weight}),
                    Catch::Matchers::Equals("Embedding: token -1 at [0] is outside the vocabulary of 7"));
  CHECK_THROWS_WITH(apply(Embedding{.tokens = weight, .weight = weight}),
                    Catch::Matchers::Equals("Embedding: the tokens are f64, not i32"));
}

namespace {

void check_place(const Place& place, int64_t channels, int64_t vocabulary, const Shape& shape) {
  const Tensor tokens = some_tokens(shape, static_cast<int32_t>(vocabulary));
  const auto f = [&](std::span<const Tensor> t) {
    return std::vector{apply(Embedding{.tokens = t[1], .weight = t[0]}),
                       apply(Embedding{.tokens = t[1], .weight = t[0]})};
  };
  check_at(place, f, {random_normal({vocabulary, channels}, 1), tokens}, 2e-6);  // sums of up to 1000 f32 numbers
}

}  // namespace

TEST_CASE("embedding: every backend agrees with f64", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  check_place(place, GENERATE(1, 5, 64, 264), GENERATE(3, 37, 256, 700), {7, 300});  // often, or not at all
}

TEST_CASE("embedding: every backend agrees with f64 on few tokens", "[gpu][small]") {
  check_place(GENERATE(from_range(places())), GENERATE(5, 264), GENERATE(3, 257), {2, 150});
}

TEST_CASE("embedding: on the GPU a token outside the vocabulary gives NaN and takes no gradient", "[gpu][small]") {
  if (no_gpu()) return;
  const Tensor tokens = from_host({4}, std::vector<int32_t>{1, -1, 2, 1}, Device::cuda);
  const Tensor weight = leaf(full({2, 3}, 5, DType::f32, Device::cuda)), dy = full({4, 3}, 1, DType::f32, Device::cuda);
  const Tensor y = apply(Embedding{.tokens = tokens, .weight = weight});
  const auto rows = to_host(y);
  for (size_t i = 0; i < 12; ++i) CHECK((i / 3 == 0 || i / 3 == 3 ? rows[i] == 5 : std::isnan(rows[i])));
  backward({&y, 1}, {&dy, 1});
  CHECK(to_host(gradient(weight)) == std::vector<double>{0, 0, 0, 2, 2, 2});
}
