#include "adder/kernels/elementwise.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/view.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <cmath>
#include <functional>
#include <limits>

using namespace adder;

namespace {

double silu(double x) { return x / (1 + std::exp(-x)); }

struct Case {
  std::string name;
  std::function<Tensor(const Tensor&, const Tensor&)> op;
  std::function<double(double, double)> formula;
  int kept;  // tensors on the tape
};

const std::vector<Case> cases = {
    {"Add", [](auto& a, auto& b) { return apply(Add{.a = a, .b = b}); }, [](double a, double b) { return a + b; }, 0},
    {"Multiply", [](auto& a, auto& b) { return apply(Multiply{.a = a, .b = b}); },
     [](double a, double b) { return a * b; }, 2},
    {"Scale", [](auto& a, auto&) { return apply(Scale{.x = a, .factor = -1.5}); },
     [](double a, double) { return -1.5 * a; }, 0},
    {"Silu", [](auto& a, auto&) { return apply(Silu{.x = a}); }, [](double a, double) { return silu(a); }, 1},
    {"SiluMultiply", [](auto& a, auto& b) { return apply(SiluMultiply{.y = a, .gate = b}); },
     [](double a, double b) { return a * silu(b); }, 2},
};

// A tensor of one dtype whose rows are three elements further apart than they are long.
Tensor apart(Shape shape, uint64_t seed, DType type = DType::f64) {
  return random_normal(shape.with(-1, shape[-1] + 3), seed, 2, 0, type).slice_last(2, 2 + shape[-1]);
}

}  // namespace

TEST_CASE("elementwise: each operator is its formula, in f64 and f32, with rows apart or not") {
  const auto shape = GENERATE(Shape{1}, Shape{2, 3, 7}, Shape{4097}, Shape{5, 8209});  // one past a piece, many threads
  for (const Case& c : cases) {
    INFO(c.name << " " << to_string(shape));
    const Tensor a = apart(shape, 1), b = random_normal(shape, 2, 2);
    const Tensor y = c.op(a, b);
    auto expected = to_host(a);
    const auto second = to_host(b);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] = c.formula(expected[i], second[i]);
    CHECK(relative_rms(y, from_host(shape, expected, DType::f64)) < 1e-15);  // a few roundings of f64
    CHECK(relative_rms(c.op(to(a, DType::f32), to(b, DType::f32)), y) < 2e-7);  // of f32, inputs included
    CHECK(bitwise_equal(c.op(clone(a), b), y));
  }
}

TEST_CASE("elementwise: gradients, with rows apart or not") {
  const auto shape = GENERATE(Shape{1}, Shape{2, 3, 7}, Shape{4097});
  for (const Case& c : cases) {
    const bool two = c.name != "Scale" && c.name != "Silu";
    const auto f = [&](std::span<const Tensor> t) { return std::vector{c.op(t[0], two ? t[1] : Tensor())}; };
    std::vector<Tensor> inputs = {apart(shape, 1)};
    if (two) inputs.push_back(random_normal(shape, 2));
    const auto g = check_gradients(f, inputs);
    INFO(c.name << " " << to_string(shape) << " " << g.worst);
    CHECK(g.error < 1e-6);
  }
}

TEST_CASE("elementwise: a gradient with rows apart goes into slots with rows apart, added or not") {
  const Shape shape{3, 5};
  for (const Case& c : cases) {
    INFO(c.name);
    const Tensor a = random_normal(shape, 1), b = random_normal(shape, 2), dy = apart(shape, 3);
    std::vector<Tensor> results;
    for (const bool slices : {false, true}) {
      const auto place = [&] { return slices ? zeros({3, 9}, DType::f64).slice_last(1, 6) : zeros(shape, DType::f64); };
      const Tensor la = leaf(a, place()), lb = leaf(b, place());
      for (int times = 0; times < 2; ++times) {
        const Tensor y = c.op(la, lb);
        backward({&y, 1}, {&dy, 1});
      }
      results.push_back(clone(gradient(la)));
      if (gradient(lb)) results.push_back(clone(gradient(lb)));
    }
    for (size_t i = 0; i < results.size() / 2; ++i) CHECK(bitwise_equal(results[i], results[i + results.size() / 2]));
  }
}

TEST_CASE("elementwise: only the wanted gradient of a pair is computed") {
  const Tensor y = random_normal({7}, 1), gate = random_normal({7}, 2), d = random_normal({7}, 3);
  const Tensor both_y = leaf(y), both_gate = leaf(gate), one = leaf(gate);
  const Tensor all = apply(SiluMultiply{.y = both_y, .gate = both_gate});
  const Tensor single = apply(SiluMultiply{.y = y, .gate = one});
  backward({&all, 1}, {&d, 1});
  backward({&single, 1}, {&d, 1});
  CHECK(bitwise_equal(gradient(one), gradient(both_gate)));
}

TEST_CASE("elementwise: the tape keeps what the header says") {
  const Shape shape{64, 64};
  const int64_t bytes = 64 * 64 * 8;
  for (const Case& c : cases) {
    INFO(c.name);
    const int64_t before = memory_use(Device::cpu).in_use;
    Tensor y = c.op(leaf(random_normal(shape, 1)), leaf(random_normal(shape, 2)));  // the tape alone holds the inputs
    CHECK(memory_use(Device::cpu).in_use - before == (1 + c.kept) * bytes);
  }
}

TEST_CASE("elementwise: Convert rounds forward, and brings the gradient back") {
  const Tensor x = leaf(random_normal({3, 5}, 1)), dy = random_normal({3, 5}, 2, 1, 0, DType::f32);
  const Tensor y = apply(Convert{.x = x, .type = DType::f32});
  CHECK(bitwise_equal(y.detach(), to(x.detach(), DType::f32)));
  backward({&y, 1}, {&dy, 1});
  CHECK(bitwise_equal(gradient(x), to(dy, DType::f64)));
  CHECK_THROWS_WITH(apply(Convert{.x = x, .type = DType::i32}),
                    Catch::Matchers::Equals("Convert: from f64 to i32, which is not between floating types"));
}

TEST_CASE("elementwise: NaN stays NaN, and operands that differ are named") {
  const Tensor x = full({2}, std::nan(""), DType::f64);
  CHECK(std::isnan(to_host(apply(Silu{.x = x}))[0]));
  const Tensor a = random_normal({2, 3}, 1), b = random_normal({3}, 2);
  CHECK_THROWS_WITH(apply(Add{.a = a, .b = b}), Catch::Matchers::Equals("Add: a f64 [2, 3] but b f64 [3]"));
  CHECK_THROWS_WITH(apply(SiluMultiply{.y = a, .gate = to(a, DType::f32)}),
                    Catch::Matchers::Equals("SiluMultiply: y f64 [2, 3] but gate f32 [2, 3]"));
  CHECK_THROWS_WITH(apply(Multiply{.a = a, .b = {}}), Catch::Matchers::Equals("Multiply: b is undefined"));
}

TEST_CASE("elementwise: every backend agrees with f64, with rows apart or not", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const auto shape = GENERATE(Shape{1}, Shape{2, 3, 7}, Shape{5, 64}, Shape{8193});
  const int64_t before = GENERATE(0, 3, 8);  // whether pieces of 16 bytes can be read at once
  for (const Case& c : cases) {
    const bool two = c.name != "Scale" && c.name != "Silu";
    const auto f = [&](std::span<const Tensor> t) {
      const auto parts = apply(Split{.x = t[0], .sizes = {before, shape[-1], before}});
      const Tensor y = c.op(parts[1], two ? t[1] : Tensor());
      return std::vector{y, c.op(parts[1], two ? t[1] : Tensor())};  // twice: gradients are also added to
    };
    INFO(c.name << " " << to_string(shape));
    check_at(place, f,
             {random_normal(shape.with(-1, shape[-1] + 2 * before), 1), two ? random_normal(shape, 2) : Tensor()},
             1e-6);  // exp and a few f32 roundings
  }
}

TEST_CASE("elementwise: the activations take their limits on every backend", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const Tensor x =
      leaf(from_host({5}, std::vector{-infinity, -200.0, 200.0, infinity, std::nan("")}, place.type, place.device));
  const Tensor y = apply(Silu{.x = x}), ones = full({5}, 1, place.type, place.device);
  backward({&y, 1}, {&ones, 1});
  const auto values = to_host(y), slopes = to_host(gradient(x));
  CHECK(values[0] == 0);
  CHECK(std::abs(values[1]) < 1e-30);
  CHECK(values[2] == 200);
  CHECK(values[3] == infinity);
  CHECK(std::isnan(values[4]));
  CHECK(std::abs(slopes[0]) < 1e-30);
  CHECK(slopes[2] == 1);
  CHECK(slopes[3] == 1);
  CHECK(std::isnan(slopes[4]));
}
