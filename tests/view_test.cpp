#include "adder/kernels/view.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/elementwise.h"

#include "catch.h"

using namespace adder;

namespace {
Tensor square(const Tensor& x) { return apply(Multiply{.a = x, .b = x}); }
}  // namespace

TEST_CASE("view: a split's parts are views, and their gradients meet in one tensor") {
  const Tensor x = random_normal({2, 3, 11}, 1);
  const auto parts = apply(Split{.x = x, .sizes = {4, 1, 0, 6}});
  REQUIRE(parts.size() == 4);
  for (const Tensor& t : parts) CHECK(t.same_storage(x));
  CHECK(bitwise_equal(parts[3], x.slice_last(5, 11)));
  const auto g = check_gradients(
      [](std::span<const Tensor> t) {
        const auto p = apply(Split{.x = square(t[0]), .sizes = {4, 1, 0, 6}});
        return std::vector{square(p[0]), square(p[1]), square(p[3]), apply(Scale{.x = p[0], .factor = 2})};
      },
      {x});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("view: a part that nobody used gets a gradient of zeros") {
  const Tensor x = leaf(random_normal({2, 3}, 1));
  // The gradients lie where memory was full of something else.
  { const Tensor dirt = full({2, 3}, 7, DType::f64); }
  const auto parts = apply(Split{.x = apply(Scale{.x = x, .factor = 1}), .sizes = {1, 2}});
  const Tensor dy = full({2, 1}, 5, DType::f64);
  backward({&parts[0], 1}, {&dy, 1});
  CHECK(to_host(gradient(x)) == std::vector<double>{5, 0, 0, 5, 0, 0});
}

TEST_CASE("view: splits nest, and a part's view takes its gradient back through rows apart") {
  const auto g = check_gradients(
      [](std::span<const Tensor> t) {
        const auto outer = apply(Split{.x = square(t[0]), .sizes = {3, 8}});
        const auto inner = apply(Split{.x = outer[1], .sizes = {6, 2}});
        const Tensor heads = apply(View{.x = inner[0], .shape = {2, 3, 2, 3}});
        return std::vector{square(heads), apply(Scale{.x = inner[1], .factor = 3}), outer[0]};
      },
      {random_normal({2, 3, 11}, 1)});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("view: a gradient that the old shape would tear is copied first") {
  const Tensor x = leaf(random_normal({2, 6}, 1));
  const Tensor y = apply(View{.x = x, .shape = {2, 3, 2}});
  const Tensor wide = random_normal({2, 3, 5}, 2), dy = wide.slice_last(1, 3);  // rows of 2, but x has rows of 6
  CHECK(y.same_storage(x));
  backward({&y, 1}, {&dy, 1});
  CHECK(bitwise_equal(gradient(x), clone(dy).reshape({2, 6})));
}

TEST_CASE("view: concatenation undoes a split, and its gradients are the slices") {
  const Tensor x = random_normal({2, 3, 11}, 1);
  CHECK(bitwise_equal(apply(Concatenate{.parts = apply(Split{.x = x, .sizes = {4, 0, 7}})}), x));
  const auto g = check_gradients(
      [](std::span<const Tensor> t) { return std::vector{square(apply(Concatenate{.parts = {t[0], t[1], t[0]}}))}; },
      {random_normal({3, 2}, 2), random_normal({3, 5}, 3)});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("view: the tape keeps no tensor, and wrong sizes are named") {
  const int64_t before = memory_use(Device::cpu).in_use;
  Tensor y;
  {
    const Tensor x = leaf(random_normal({8, 8}, 1));
    y = apply(Scale{.x = apply(View{.x = apply(Split{.x = x, .sizes = {8}})[0], .shape = {64}}), .factor = 2});
  }
  CHECK(memory_use(Device::cpu).in_use - before == 8 * 8 * 8);
  const Tensor a = random_normal({2, 3}, 1), b = random_normal({3, 3}, 2);
  CHECK_THROWS_WITH(apply(Split{.x = a, .sizes = {1, 1}}),
                    Catch::Matchers::Equals("Split: x [2, 3] but the parts have 2 elements"));
  CHECK_THROWS_WITH(apply(Split{.x = a, .sizes = {4, -1}}), Catch::Matchers::Equals("Split: a part of -1 elements"));
  CHECK_THROWS_WITH(apply(Concatenate{.parts = {a, b}}),
                    Catch::Matchers::Equals("Concatenate: part 0 f64 [2, 3] but part 1 f64 [3, 3]"));
  CHECK_THROWS_AS(apply(View{.x = a, .shape = {7}}), Error);
}
