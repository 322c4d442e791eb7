#include "adder/autograd/gradient_check.h"
#include "adder/autograd/recompute.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/gated_rms_norm.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/view.h"

#include "catch.h"

using namespace adder;

namespace {

int nodes_alive = 0;

// Counts copies that are alive, to see when the tape lets go.
struct Alive {
  Alive() { ++nodes_alive; }
  Alive(const Alive&) { ++nodes_alive; }
  Alive(Alive&&) noexcept { ++nodes_alive; }
  ~Alive() { --nodes_alive; }
};

// y = x, handing the very gradient it was given to its input.
struct Same {
  Tensor x;
  Alive alive = {};
  auto inputs() { return std::tie(x); }
  Tensor forward() { return clone(std::exchange(x, {})); }
  void backward(const Tensor& dy, Grads& to) const { to.give(0, dy); }
};

// a + b: both inputs get the same gradient tensor.
struct Sum {
  Tensor a, b;
  auto inputs() { return std::tie(a, b); }
  Tensor forward() {
    const auto x = to_host(a), y = to_host(b);
    std::vector<double> z(x.size());
    for (size_t i = 0; i < z.size(); ++i) z[i] = x[i] + y[i];
    Tensor sum = from_host(a.shape(), z, a.dtype());
    a = b = {};
    return sum;
  }
  void backward(const Tensor& dy, Grads& to) const {
    to.give(0, dy);
    to.give(1, dy);
  }
};

// Keeps its own output, as exp or softmax would.
struct KeepsOutput {
  Tensor x, y;
  Alive alive = {};
  auto inputs() { return std::tie(x); }
  Tensor forward() { return y = clone(std::exchange(x, {})); }
  void backward(const Tensor& dy, Grads& to) const { to.give(0, dy); }
};

// Two outputs: x and x again; the gradients add.
struct Twice {
  Tensor x;
  auto inputs() { return std::tie(x); }
  std::array<Tensor, 2> forward() {
    const Tensor kept = std::exchange(x, {});
    return {clone(kept), clone(kept)};
  }
  void backward(const Tensor& dy, const Tensor& dz, Grads& to) const {
    if (dy) to.give(0, dy);
    if (dz) to.give(0, dz);
  }
};

struct Throws {
  Tensor x;
  auto inputs() { return std::tie(x); }
  Tensor forward() { return clone(x); }
  void backward(const Tensor&, Grads& to) const {
    to.slot(0);
    fail("on purpose");
  }
};

Tensor same(const Tensor& x) { return apply(Same{.x = x}); }
Tensor sum(const Tensor& a, const Tensor& b) { return apply(Sum{.a = a, .b = b}); }

}  // namespace

TEST_CASE("tape: a gradient borrowed by two inputs is not added to in place") {
  const Tensor a = leaf(full({3}, 1, DType::f64)), b = leaf(full({3}, 2, DType::f64));
  const Tensor x = same(a), y = same(b);
  const Tensor early = sum(x, y);         // gives x and y one gradient tensor ...
  const Tensor late = sum(early, same(x));  // ... and x gets another one added
  const Tensor ones = full({3}, 1, DType::f64);
  backward({&late, 1}, {&ones, 1});
  CHECK(to_host(gradient(a)) == std::vector<double>{2, 2, 2});
  CHECK(to_host(gradient(b)) == std::vector<double>{1, 1, 1});
  CHECK(to_host(ones) == std::vector<double>{1, 1, 1});
}

TEST_CASE("tape: an operator that keeps its own output is freed") {
  nodes_alive = 0;
  {
    const Tensor x = leaf(full({2}, 1, DType::f64));
    Tensor y = apply(KeepsOutput{.x = x, .y = {}});
    CHECK(nodes_alive == 1);
  }
  CHECK(nodes_alive == 0);
}

TEST_CASE("tape: dropping and walking 200,000 operators does not recurse") {
  nodes_alive = 0;
  const Tensor x = leaf(full({1}, 1, DType::f64));
  {
    Tensor y = x;
    for (int i = 0; i < 200'000; ++i) y = same(y);
    CHECK(nodes_alive == 200'000);
  }
  CHECK(nodes_alive == 0);
  Tensor y = x;
  for (int i = 0; i < 200'000; ++i) y = same(y);
  backward(y);
  CHECK(item(gradient(x)) == 1);
  CHECK(nodes_alive == 0);  // backward freed each node's operator as it ran
}

TEST_CASE("tape: outputs that nobody used have no gradient, and several outputs add") {
  const Tensor x = leaf(full({2}, 1, DType::f64));
  const auto [y, z] = apply(Twice{.x = x});
  SECTION("one used") {
    backward(apply(Matmul{.x = z, .weight = full({1, 2}, 3, DType::f64), .bias = {}}));
    CHECK(to_host(gradient(x)) == std::vector<double>{3, 3});
  }
  SECTION("both used") {
    backward(apply(Matmul{.x = sum(y, z), .weight = full({1, 2}, 3, DType::f64), .bias = {}}));
    CHECK(to_host(gradient(x)) == std::vector<double>{6, 6});
  }
}

TEST_CASE("tape: a second backward over one recording is refused, and gradients add over recordings") {
  const Tensor x = leaf(full({1}, 2, DType::f64));
  const Tensor y = same(x);
  backward(y);
  CHECK_THROWS_AS(backward(y), Error);
  backward(same(x));
  CHECK(item(gradient(x)) == 2);
  clear_gradient(x);
  CHECK_FALSE(gradient(x).defined());
  backward(same(x));
  CHECK(item(gradient(x)) == 1);
}

TEST_CASE("tape: a reshaped tensor stays on the tape") {
  const Tensor x = leaf(full({2, 3}, 1, DType::f64));
  const Tensor y = same(x.reshape({6})).reshape({3, 2});  // used flat, then used as another matrix
  const Tensor z = sum(apply(Matmul{.x = y, .weight = full({1, 2}, 5, DType::f64), .bias = {}}).reshape({3}),
                       full({3}, 0, DType::f64));
  const Tensor dz = from_host({3}, std::vector<double>{1, 2, 3}, DType::f64);
  backward({&z, 1}, {&dz, 1});
  CHECK(gradient(x).shape() == Shape{2, 3});
  CHECK(to_host(gradient(x)) == std::vector<double>{5, 5, 10, 10, 15, 15});
}

TEST_CASE("tape: one tensor as two inputs of an operator gets both gradients") {
  const Tensor x = random_normal({3, 4}, 1);
  const auto g = check_gradients(
      [](std::span<const Tensor> t) {
        const Tensor h = same(t[0]);
        return std::vector{apply(SiluMultiply{.y = h, .gate = h}),
                           apply(GatedRmsNorm{.y = h, .z = h, .weight = t[1], .eps = 0.1}),
                           apply(SiluMultiply{.y = t[0], .gate = t[0]})};
      },
      {x, random_normal({4}, 2)});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("tape: an operator that throws in backward leaves neither gradients nor a blocked tape behind") {
  const Tensor a = leaf(full({2}, 1, DType::f64)), b = leaf(full({2}, 1, DType::f64));
  const Tensor trunk = same(b);
  const Tensor y = sum(apply(Throws{.x = a}), trunk), ones = full({2}, 1, DType::f64);
  CHECK_THROWS_AS(backward({&y, 1}, {&ones, 1}), Error);
  CHECK_FALSE(gradient(a).defined());
  const Tensor again = same(trunk);
  backward({&again, 1}, {&ones, 1});
  CHECK(to_host(gradient(b)) == std::vector<double>{1, 1});
}

TEST_CASE("tape: a second backward through the parts of a split is refused") {
  const Tensor x = leaf(full({1, 4}, 1, DType::f64)), w = full({1, 2}, 1, DType::f64);
  const auto parts = apply(Split{.x = x, .sizes = {2, 2}});
  const auto loss = [&] { return apply(Matmul{.x = parts[0], .weight = w, .bias = {}}); };
  const Tensor first = loss(), second = loss();
  backward(first);
  CHECK_THROWS_WITH(backward(second), ContainsSubstring("has run already"));
}

TEST_CASE("tape: a gradient whose rows span two axes reaches a product") {
  const auto g = check_gradients(
      [](std::span<const Tensor> t) {
        const Tensor y = apply(Matmul{.x = t[0], .weight = t[1], .bias = {}});
        return std::vector{apply(Concatenate{.parts = {y.reshape({2, 15}), t[2]}})};
      },
      {random_normal({2, 3, 4}, 1), random_normal({5, 4}, 2), random_normal({2, 2}, 3)});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("recompute: a captured tensor that was recorded outside is refused") {
  const Tensor x = leaf(full({2}, 1, DType::f64)), h = same(x), ones = full({2}, 1, DType::f64);
  const Tensor y = recompute([h](const Tensor& t) { return sum(t, h); }, same(h));
  CHECK_THROWS_WITH(backward({&y, 1}, {&ones, 1}), ContainsSubstring("make it an argument"));
}

TEST_CASE("tape: nothing is recorded under NoGrad or without leaves") {
  const Tensor x = leaf(full({1}, 2, DType::f64));
  {
    NoGrad none;
    CHECK_FALSE(static_cast<bool>(same(x).link()));
  }
  CHECK(static_cast<bool>(same(x).link()));
  CHECK_FALSE(static_cast<bool>(same(x.detach()).link()));
  CHECK_THROWS_AS(backward(x.detach()), Error);
}

TEST_CASE("recompute: gradients of inputs and of what is captured equal those without, bit for bit") {
  const Tensor x = leaf(random_normal({4, 3}, 1)), w = leaf(random_normal({5, 3}, 2)),
               v = leaf(random_normal({1, 5}, 3));
  const auto f = [&](const Tensor& t) {
    return apply(Matmul{.x = apply(Matmul{.x = t, .weight = w, .bias = {}}), .weight = v, .bias = {}});
  };
  const Tensor dy = random_normal({4, 1}, 4);
  std::vector<Tensor> direct;
  for (bool again : {false, true}) {
    for (const Tensor& t : {x, w, v}) clear_gradient(t);
    const Tensor y = again ? recompute(f, x) : f(x);
    backward({&y, 1}, {&dy, 1});
    if (!again) direct = {clone(gradient(x)), clone(gradient(w)), clone(gradient(v))};
  }
  CHECK(bitwise_equal(gradient(x), direct[0]));
  CHECK(bitwise_equal(gradient(w), direct[1]));
  CHECK(bitwise_equal(gradient(v), direct[2]));
}

TEST_CASE("recompute: keeps no more than its inputs") {
  const Tensor x = leaf(random_normal({64, 64}, 1)), w = random_normal({64, 64}, 2);
  const auto chain = [&](Tensor t) {
    for (int i = 0; i < 8; ++i) t = apply(Matmul{.x = t, .weight = leaf(w), .bias = {}});
    return t;
  };
  const int64_t before = memory_use(Device::cpu).in_use, one = 64 * 64 * 8;
  const Tensor direct = chain(x);
  CHECK(memory_use(Device::cpu).in_use - before == 8 * one);  // every product's input, and the output
  const int64_t middle = memory_use(Device::cpu).in_use;
  const Tensor again = recompute(chain, x);
  CHECK(memory_use(Device::cpu).in_use - middle == one);  // the output alone: x was there
}

TEST_CASE("forget: the memory is gone until somebody asks, then it is made again, once, for all views") {
  const Tensor x = leaf(random_normal({64, 64}, 1)), w = random_normal({64, 64}, 2);
  const int64_t one = 64 * 64 * 8, before = memory_use(Device::cpu).in_use;
  int made = 0;
  const auto f = [&made, w](const Tensor& t) {
    ++made;
    return apply(Matmul{.x = t, .weight = w, .bias = {}});
  };
  Tensor y = f(x);
  const Tensor row = y.slice_first(3, 4), part = y.slice_last(5, 9), expected = clone(y.detach());
  CHECK(memory_use(Device::cpu).in_use - before == 2 * one);
  forget(y, f, x);
  CHECK(memory_use(Device::cpu).in_use - before == one);
  CHECK(y.shape() == Shape{64, 64});
  CHECK(made == 1);
  CHECK(bitwise_equal(part, expected.slice_last(5, 9)));
  CHECK(made == 2);
  CHECK(bitwise_equal(y, expected));
  CHECK(bitwise_equal(row, expected.slice_first(3, 4)));
  CHECK(made == 2);
  CHECK(memory_use(Device::cpu).in_use - before == 2 * one);
  forget(y, f, x);  // and once more
  CHECK(memory_use(Device::cpu).in_use - before == one);
  CHECK(bitwise_equal(y, expected));
  CHECK(made == 3);
}

TEST_CASE("forget: backward makes again what it reads, frees it, and gives the same gradients") {
  const auto random = [](uint64_t seed) { return random_normal({64, 64}, seed); };
  const Tensor x = leaf(random(1)), v = leaf(random(2)), w = leaf(random(3)), dz = random(4);
  const int64_t one = 64 * 64 * 8;
  std::vector<Tensor> expected;
  for (const bool forgets : {false, true}) {
    for (const Tensor& t : {x, v, w}) clear_gradient(t);
    const int64_t before = memory_use(Device::cpu).in_use;
    const Matmul first{.x = x, .weight = v, .bias = {}};
    Tensor y = apply(first), z = apply(Matmul{.x = y, .weight = w, .bias = {}});
    if (forgets) forget(y, first);
    y = {};
    CHECK(memory_use(Device::cpu).in_use - before == (forgets ? 1 : 2) * one);  // z, and y for the gradient of w
    backward({&z, 1}, {&dz, 1});
    z = {};
    if (forgets) CHECK(memory_use(Device::cpu).in_use == before);  // the gradients of the leaves were there
    if (expected.empty()) expected = {clone(gradient(x)), clone(gradient(v)), clone(gradient(w))};
    CHECK(bitwise_equal(gradient(x), expected[0]));
    CHECK(bitwise_equal(gradient(v), expected[1]));
    CHECK(bitwise_equal(gradient(w), expected[2]));
  }
}

TEST_CASE("forget: what is forgotten may need what is forgotten") {
  const Tensor x = leaf(random_normal({4, 4}, 1));
  const Tensor a = same(x), b = same(a), c = same(b), expected = clone(c.detach());
  const auto copied = [](const Tensor& t) { return clone(t); };
  forget(a, copied, x);
  forget(b, copied, a);
  forget(c, copied, b);
  CHECK(bitwise_equal(c, expected));
}

TEST_CASE("forget: an unread tensor frees what it would have been made from") {
  const int64_t before = memory_use(Device::cpu).in_use;
  {
    Tensor y;
    {
      const Tensor x = leaf(random_normal({64, 64}, 1));
      y = same(x);
      forget(y, [](const Tensor& t) { return clone(t); }, x);
    }
    CHECK(memory_use(Device::cpu).in_use - before == 64 * 64 * 8);
  }
  CHECK(memory_use(Device::cpu).in_use == before);
}

TEST_CASE("forget: nothing is forgotten that was not recorded") {
  const Tensor x = leaf(random_normal({64, 64}, 1));
  NoGrad none;
  const Tensor y = same(x);
  const int64_t before = memory_use(Device::cpu).in_use;
  forget(y, [](const Tensor& t) { return t; }, x);
  CHECK(memory_use(Device::cpu).in_use == before);
}

TEST_CASE("forget: a function that throws is called again, one that makes something else is refused") {
  const Tensor x = leaf(full({4}, 2, DType::f64));
  int calls = 0;
  const Tensor y = same(x), z = same(x), v = same(x), dy = full({4}, 1, DType::f64);
  forget(y, [&calls](const Tensor& t) {
    if (++calls == 1) fail("not today");
    return clone(t);
  }, x);
  CHECK_THROWS_WITH(item(y.slice_first(0, 1)), ContainsSubstring("not today"));
  CHECK(item(y.slice_first(0, 1)) == 2);
  CHECK(calls == 2);
  forget(z, [](const Tensor& t) { return to(t, DType::f32); }, x);
  CHECK_THROWS_WITH(to_host(z), ContainsSubstring("is not the f64 tensor [4] that was given back"));
  const Tensor held = clone(x.detach());
  forget(v, [held](const Tensor&) { return held; }, x);
  CHECK_THROWS_WITH(to_host(v), ContainsSubstring("held by"));
  CHECK(item(held.slice_first(0, 1)) == 2);
  CHECK_THROWS_WITH(y.slice_first(0, 2).give_back([] { return Tensor(); }),
                    ContainsSubstring("not all of its storage"));
}

TEST_CASE("forget: many threads that ask at once get one block") {
  const Tensor x = leaf(random_normal({64, 64}, 1)), y = same(x);
  int made = 0;
  forget(y, [&made](const Tensor& t) {
    ++made;
    return clone(t);
  }, x);
  void* seen[8] = {};
#pragma omp parallel for num_threads(8)
  for (int i = 0; i < 8; ++i) seen[i] = y.address();
  CHECK(made == 1);
  for (void* p : seen) CHECK(p == y.address());
}
