#include "adder/autograd/params.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/matmul.h"

#include "catch.h"

#include <cmath>

using namespace adder;

TEST_CASE("params: names come from the path and are unique") {
  Params p(Device::cpu);
  const Tensor w = (p / "block" / 3).create("weight", {2, 3}, init::constant(0.5), {.decay = false, .lr_scale = 2});
  CHECK(p.all().back().name == "block/3/weight");
  CHECK(p.all().back().options.lr_scale == 2);
  CHECK(to_host(w) == std::vector<double>(6, 0.5));
  CHECK_THROWS_WITH((p / "block" / 3).create("weight", {1}, init::constant(0)),
                    Catch::Matchers::Equals("Params: the name block/3/weight is taken"));
  CHECK_THROWS_AS(p.create("a/b", {1}, init::constant(0)), Error);
}

TEST_CASE("params: initial values depend on seed and name only, and are rounded once from f64") {
  Params a(Device::cpu, {.seed = 7}), b(Device::cpu, {.seed = 7, .dtype = DType::f64}), c(Device::cpu, {.seed = 8});
  b.create("other", {1000}, init::normal(1));  // elsewhere in the arena
  const Tensor x = a.create("w", {64, 64}, init::normal(1)), y = b.create("w", {64, 64}, init::normal(1)),
               z = c.create("w", {64, 64}, init::normal(1));
  CHECK(bitwise_equal(x.detach(), to(y.detach(), DType::f32)));
  CHECK_FALSE(bitwise_equal(x.detach(), z.detach()));
  double sum = 0, squares = 0;
  for (double v : to_host(y)) sum += v, squares += v * v;
  CHECK(std::abs(sum / 4096) < 5 / 64.0);                        // five standard errors of the mean
  CHECK(std::abs(squares / 4096 - 1) < 5 * std::sqrt(2.0 / 4096));  // and of the variance
}

TEST_CASE("params: the parts of a packed matrix are the tensors they would be alone") {
  Params packed(Device::cpu), alone(Device::cpu);
  const Tensor w = packed.create_packed("in_proj", 5,
                                        {{"z", 4, init::normal(1)}, {"dt", 3, init::uniform(-1, 1), {.decay = false}}});
  const Tensor z = (alone / "in_proj").create("z", {4, 5}, init::normal(1));
  const Tensor dt = (alone / "in_proj").create("dt", {3, 5}, init::uniform(-1, 1));
  CHECK(w.shape() == Shape{7, 5});
  CHECK(bitwise_equal(w.slice_first(0, 4), z.detach()));
  CHECK(bitwise_equal(w.slice_first(4, 7), dt.detach()));
  REQUIRE(packed.all().size() == 2);
  CHECK(packed.all()[1].name == "in_proj/dt");
  CHECK_FALSE(packed.all()[1].options.decay);
  // A gradient of the packed matrix is seen by its parts.
  const Tensor y = apply(Matmul{.x = full({1, 5}, 2), .weight = w, .bias = {}});
  const Tensor one = full({1, 7}, 1);
  backward({&y, 1}, {&one, 1});
  packed.settle_gradients();
  CHECK(to_host(packed.all()[1].gradient) == std::vector<double>(15, 2));
}

TEST_CASE("params: the shards of a tensor are cut out of the whole one") {
  Params whole(Device::cpu);
  const Tensor w = whole.create("w", {4, 6}, init::normal(1));
  const auto packed_parts = [](int64_t replicas) {
    return std::vector<Params::Part>{{"x", 8, init::normal(1), {.shard_axis = 0}},
                                     {"B", 2, init::normal(1), {.shard_axis = 0, .replicas = replicas}}};
  };
  const Tensor all = whole.create_packed("p", 3, packed_parts(1));
  for (int64_t rank = 0; rank < 4; ++rank) {
    Params part(Device::cpu, {.seed = 1, .dtype = DType::f32, .shard = rank, .shards = 4});
    const Tensor rows = part.create("w", {4, 6}, init::normal(1), {.shard_axis = 0});
    CHECK(bitwise_equal(rows.detach(), w.slice_first(rank, rank + 1)));
    CHECK(part.all().back().offset == rank);
    const Tensor cut = part.create_packed("p", 3, packed_parts(2));
    CHECK(bitwise_equal(cut.slice_first(0, 2), all.slice_first(2 * rank, 2 * rank + 2)));
    CHECK(bitwise_equal(cut.slice_first(2, 3), all.slice_first(8 + rank / 2, 9 + rank / 2)));  // two ranks share a row
  }
  Params part(Device::cpu, {.seed = 1, .dtype = DType::f32, .shard = 1, .shards = 2});
  const Tensor columns = part.create("w", {4, 6}, init::normal(1), {.shard_axis = 1});
  CHECK(bitwise_equal(columns.detach(), clone(w.slice_last(3, 6))));
  CHECK_THROWS_AS(part.create("odd", {3}, init::normal(1), {.shard_axis = 0}), Error);
}

TEST_CASE("params: with room made for them tensors lie in blocks of at least 64 MiB that end with a tensor") {
  const int64_t full = (int64_t{64} << 20) / 8;
  const auto model = [=](Params p) {
    for (const auto& [name, count] : {std::pair{"a", int64_t{1001}}, {"b", full}, {"c", int64_t{7}}, {"d", full},
                                      {"e", int64_t{5}}})
      p.create(name, {count}, init::constant(1));
  };
  for (const bool sizes_only : {true, false}) {
    Params p(Device::cpu, {.dtype = DType::f64, .sizes_only = sizes_only});
    p.create("before", {3}, init::constant(2));
    p.make_room(model);
    CHECK(p.count() == 3);
    model(p);
    REQUIRE(p.blocks().size() == 3);
    CHECK(p.blocks()[1].capacity == 1024 + full);
    CHECK(p.blocks()[2].capacity == 64 + full + 64);
    for (const ParamBlock& block : p.blocks().subspan(1)) CHECK(block.used == block.capacity);
    p.make_room([](Params to) { to.create("small", {9}, init::constant(3)); });
    p.create("small", {9}, init::constant(3));
    CHECK(p.blocks().size() == 4);
    p.make_room([](Params to) { to.create("smaller", {9}, init::constant(4)); });  // there is some
    p.create("smaller", {9}, init::constant(4));
    CHECK(p.blocks().size() == 4);
    if (sizes_only) continue;
    const auto place = [&](size_t i) {
      return static_cast<const double*>(p.all()[i].value.address()) - p.blocks()[i < 3 ? 1 : 2].values.data<double>();
    };
    CHECK(place(1) == 0);
    CHECK(place(2) == 1024);
    CHECK(place(3) == 0);
    CHECK(place(4) == 64);
    CHECK(place(5) == 64 + full);
    CHECK(p.all()[5].gradient.address() == p.blocks()[2].gradients.slice_first(64 + full, 64 + full + 5).address());
    CHECK(to_host(p.all()[5].value) == std::vector<double>(5, 1));
  }
}

TEST_CASE("params: gradients that never arrived are settled as zero") {
  Params p(Device::cpu);
  const Tensor a = p.create("a", {1, 2}, init::constant(1)), b = p.create("b", {2}, init::constant(1));
  fill(p.all()[1].gradient, 9);  // stale
  backward(apply(Matmul{.x = full({1, 2}, 3), .weight = a, .bias = {}}));
  p.settle_gradients();
  CHECK(to_host(p.all()[0].gradient) == std::vector<double>{3, 3});
  CHECK(to_host(p.all()[1].gradient) == std::vector<double>{0, 0});
  p.clear_gradients();
  backward(apply(Matmul{.x = full({1, 2}, 5), .weight = a, .bias = {}}));
  CHECK(to_host(p.all()[0].gradient) == std::vector<double>{5, 5});
}

TEST_CASE("params: in a bf16 run the weights of products are read as rounded copies, and all else as it is") {
  Params f32(Device::cpu), p(Device::cpu, {.compute = DType::bf16});
  const auto fill_with = [](Params& to) {
    return std::vector{to.create("norm", {5}, init::normal(1), {.decay = false}),
                       to.create("weight", {3, 7}, init::normal(1), {.product = true}),
                       to.create_packed("in_proj", 7, {{"x", 4, init::normal(1), {.product = true}},
                                                       {"dt", 2, init::normal(1), {.product = true}}})};
  };
  const auto masters = fill_with(f32), leaves = fill_with(p);
  const ParamBlock& block = p.blocks()[0];
  CHECK(block.rounded.dtype() == DType::bf16);
  CHECK(block.rounded.count() == block.values.count());
  CHECK(bitwise_equal(block.rounded, to(block.values, DType::bf16)));
  CHECK(leaves[0].same_storage(block.values));
  for (size_t i : {1, 2}) {
    CHECK(leaves[i].same_storage(block.rounded));
    CHECK(bitwise_equal(leaves[i].detach(), to(masters[i].detach(), DType::bf16)));
    CHECK(bitwise_equal(p.master(leaves[i]), masters[i].detach()));
    CHECK(p.master(leaves[i].slice_first(1, 2)).address() == p.master(leaves[i]).slice_first(1, 2).address());
  }
  CHECK(p.master(leaves[0]).address() == leaves[0].address());
  // Of another arena there is none to give; columns are no parameter.
  CHECK_THROWS_WITH(f32.master(leaves[1]), "Params: bf16 [3, 7] is no parameter of this model");
  CHECK_THROWS_WITH(p.master(masters[1]), "Params: f32 [3, 7] is no parameter of this model");
  CHECK_THROWS_AS(p.master(leaves[1].slice_last(0, 2)), Error);
  CHECK(p.all()[2].value.dtype() == DType::f32);

  fill(p.all()[1].value, 1 + 0x1p-10);  // halfway from 1 to nowhere: rounds to 1
  CHECK(to_host(leaves[1]) != std::vector<double>(21, 1));
  p.round();
  CHECK(to_host(leaves[1]) == std::vector<double>(21, 1));
  CHECK(to_host(p.master(leaves[1])) == std::vector<double>(21, 1 + 0x1p-10));
}

TEST_CASE("params: gradients of a rounded copy are collected in f32, where those of the master lie") {
  Params p(Device::cpu, {.compute = DType::bf16});
  const Tensor w = p.create("weight", {2, 2}, init::constant(1), {.product = true});
  const Tensor one = full({2, 2}, 1, DType::bf16);
  backward({&w, 1}, {&one, 1});
  REQUIRE(gradient(w).dtype() == DType::f32);
  CHECK(gradient(w).address() == p.all()[0].gradient.address());
  CHECK(to_host(p.all()[0].gradient) == std::vector<double>(4, 1));
}

TEST_CASE("params: computing in another dtype than bf16 or the masters', and half-rounded packs, are refused") {
  CHECK_THROWS_WITH(Params(Device::cpu, {.dtype = DType::f64, .compute = DType::bf16}),
                    "Params: masters in f64 cannot be computed with in bf16");
  Params p(Device::cpu);
  CHECK_THROWS_WITH(
      p.create_packed("m", 2, {{"a", 1, init::constant(0), {.product = true}}, {"b", 1, init::constant(0)}}),
      "m: some parts are weights of a product, and some are not");
}

TEST_CASE("shape: more elements than 64 bits can count are refused") {
  CHECK_THROWS_WITH((Shape{int64_t{1} << 40, int64_t{1} << 40}), ContainsSubstring("is too large"));
}
