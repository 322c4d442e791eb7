#include "adder/distributed/communicator.h"

#include "adder/autograd/gradient_check.h"
#include "adder/core/bf16.h"
#include "adder/core/error.h"
#include "adder/distributed/mesh.h"
#include "adder/tests/mpi/devices.h"

#include "catch.h"

#include <cmath>
#include <cstdlib>
#include <limits>

using namespace adder;

namespace {

// What rank r brings: any rank knows what the others have.
Tensor brought(const Shape& shape, int64_t r, DType type) {
  if (type != DType::i32) return random_normal(shape, static_cast<uint64_t>(r) + 1, 1, 0, type);
  Tensor t(shape, type);
  for (int64_t i = 0; i < t.count(); ++i) t.data<int32_t>()[i] = static_cast<int32_t>((i + 1) * 1'000'003 * (r + 1));
  return t;
}

// The sum over the ranks in their order, in f64 (i32: exact), rounded once.
Tensor sum_of_all(const Shape& shape, int64_t ranks, DType type) {
  std::vector<double> sum(static_cast<size_t>(shape.count()));
  for (int64_t r = 0; r < ranks; ++r) {
    const auto x = to_host(brought(shape, r, type));
    for (size_t i = 0; i < x.size(); ++i) sum[i] += x[i];
  }
  if (type != DType::i32) return from_host(shape, sum, type);
  std::vector<int32_t> wrapped;
  for (const double x : sum) wrapped.push_back(static_cast<int32_t>(static_cast<int64_t>(x)));
  return from_host(shape, wrapped);
}

const std::vector<DType> all_types{DType::f32, DType::f64, DType::bf16, DType::i32};

}  // namespace

TEST_CASE("communicator: all_reduce is the sum in rank order, to the bit, whatever the dtype, size and chunk") {
  const Communicator world = Communicator::world();
  const Device device = GENERATE(from_range(devices()));
  for (const DType type : all_types)
    for (const int64_t n : {0, 1, 2, 7, 1024, 1025, 4099})
      for (const int64_t chunk : {1 << 18, 100, 1025}) {
        const Tensor x = to_device(brought({n}, world.rank(), type), device);
        world.with_chunk(chunk).all_reduce(x);
        CHECK(bitwise_equal(x, sum_of_all({n}, world.size(), type)));
      }
  const Tensor large = to_device(brought({3, 400'001}, world.rank(), DType::f32), device);  // several chunks, threads
  world.all_reduce(large);
  CHECK(bitwise_equal(large, sum_of_all({3, 400'001}, world.size(), DType::f32)));
}

TEST_CASE("communicator: the maximum is the largest, and NaN is larger than anything") {
  const Communicator world = Communicator::world();
  const Device device = GENERATE(from_range(devices()));
  for (const int64_t n : {3, 2000}) {
    const Tensor mine = full({n}, static_cast<double>(-world.rank()), DType::f32);
    if (world.rank() == 1) mine.data<float>()[1] = std::numeric_limits<float>::quiet_NaN();
    if (world.rank() == world.size() - 1) mine.data<float>()[n - 1] = 7;
    const Tensor x = to_device(mine, device);
    world.all_reduce(x, Reduce::max);
    const auto most = to_host(x);
    CHECK(most[0] == 0);
    CHECK(std::isnan(most[1]));
    CHECK(most.back() == 7);
  }
}

TEST_CASE("communicator: all_gather joins the parts of the first axis, also in place, and reduce_scatter sums them") {
  const Communicator world = Communicator::world();
  const int64_t p = world.size(), r = world.rank();
  const Device device = GENERATE(from_range(devices()));
  const auto here = [&](const Tensor& t) { return to_device(t, device); };
  for (const DType type : all_types)
    for (const int64_t rows : {0, 1, 3, 250})
      for (const int64_t chunk : {1 << 18, 64}) {
        const Communicator group = world.with_chunk(chunk);
        const Tensor whole({p * rows, 5}, type, device), again({p * rows, 5}, type, device);
        group.all_gather(here(brought({rows, 5}, r, type)), whole);
        for (int64_t i = 0; i < p; ++i)
          CHECK(bitwise_equal(whole.slice_first(i * rows, (i + 1) * rows), brought({rows, 5}, i, type)));
        copy(brought({rows, 5}, r, type), again.slice_first(r * rows, (r + 1) * rows));
        group.all_gather(again.slice_first(r * rows, (r + 1) * rows), again);
        CHECK(bitwise_equal(whole, again));
        const Tensor part({rows, 5}, type, device);
        group.reduce_scatter(here(brought({p * rows, 5}, r, type)), part);
        CHECK(bitwise_equal(part, sum_of_all({p * rows, 5}, p, type).slice_first(r * rows, (r + 1) * rows)));
      }
}

TEST_CASE("communicator: broadcast gives everyone the root's tensor") {
  const Communicator world = Communicator::world();
  const Device device = GENERATE(from_range(devices()));
  for (int64_t root = 0; root < world.size(); ++root) {
    const Tensor x = to_device(brought({301}, world.rank(), DType::f64), device);
    world.with_chunk(100).broadcast(x, root);
    CHECK(bitwise_equal(x, brought({301}, root, DType::f64)));
  }
}

TEST_CASE("communicator: a shift moves tensors one rank on; open ends find zeros, a ring closes") {
  const Communicator world = Communicator::world();
  const int64_t p = world.size(), r = world.rank();
  const Device device = GENERATE(from_range(devices()));
  for (const int64_t by : {1, -1})
    for (const int64_t chunk : {1 << 18, 7}) {
      const Tensor sent = to_device(brought({5, 6}, r, DType::f32), device);
      const Tensor received = full({5, 6}, 9, DType::f32, device);
      const int64_t from = r - by;
      world.with_chunk(chunk).shift(sent, received, by);
      CHECK(bitwise_equal(received, from < 0 || from >= p ? zeros({5, 6}) : brought({5, 6}, from, DType::f32)));
      world.with_chunk(chunk).shift(sent, received, by, Ends::ring);
      CHECK(bitwise_equal(received, brought({5, 6}, (from + p) % p, DType::f32)));
    }
}

TEST_CASE("communicator: tensors of more than 2^31 bytes, where ADDER_LARGE asks for them; each rank holds 4 GiB") {
  if (std::getenv("ADDER_LARGE") == nullptr) return;
  const Communicator world = Communicator::world();
  const int64_t n = (int64_t{1} << 29) + 1027, p = world.size();
  const Tensor x({n}, DType::f32), y({n}, DType::f32);
  // Whether element i of t is offset + factor ((first + i) mod 1021).
  const auto holds = [](const Tensor& t, double offset, double factor = 1, int64_t first = 0) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < t.count(); ++i)
      wrong += t.data<float>()[i] != static_cast<float>(offset + factor * static_cast<double>((first + i) % 1021));
    return wrong == 0;
  };
  const auto start = [&](double value) {
    for (int64_t i = 0; i < n; ++i) x.data<float>()[i] = static_cast<float>(value + static_cast<double>(i % 1021));
  };
  start(world.rank() == 1 ? 7 : 0);
  world.broadcast(x, 1);
  CHECK(holds(x, 7));
  start(static_cast<double>(world.rank()));
  world.all_reduce(x, Reduce::max);
  CHECK(holds(x, static_cast<double>(p - 1)));
  start(static_cast<double>(world.rank()));
  world.shift(x, y);
  CHECK((world.rank() == 0 ? holds(y, 0, 0) : holds(y, static_cast<double>(world.rank() - 1))));
  const int64_t part = n / p, own = world.rank() * part;
  const Tensor sum = y.slice_first(0, part);
  world.reduce_scatter(x.slice_first(0, p * part), sum);  // in f32 exact: the sums are below 2^24
  CHECK(holds(sum, static_cast<double>(p * (p - 1) / 2), static_cast<double>(p), own));
  world.all_gather(x.slice_first(own, own + part), x.slice_first(0, p * part));
  for (int64_t r = 0; r < p; ++r)
    for (const int64_t i : {r * part, (r + 1) * part - 1})
      CHECK(x.data<float>()[i] == static_cast<float>(static_cast<double>(r) + static_cast<double>(i % 1021)));
}

TEST_CASE("communicator: texts of any length are exchanged, by rank") {
  const Communicator world = Communicator::world();
  const auto text = [](int64_t r) { return std::string(static_cast<size_t>(r * 1000), static_cast<char>('a' + r)); };
  const auto all = world.with_chunk(300).exchange(text(world.rank()));
  REQUIRE(static_cast<int64_t>(all.size()) == world.size());
  for (int64_t r = 0; r < world.size(); ++r) CHECK(all[static_cast<size_t>(r)] == text(r));
}

TEST_CASE("communicator: a split has the members of one colour, in the order of their keys") {
  const Communicator world = Communicator::world();
  const int64_t p = world.size(), r = world.rank();
  const Device device = GENERATE(from_range(devices()));
  const Communicator half = world.split(r % 2, -r);
  CHECK(half.size() == p / 2);
  CHECK(half.rank() == half.size() - 1 - r / 2);
  const Tensor x = full({1}, static_cast<double>(r), DType::f64, device);
  half.all_reduce(x);
  CHECK(item(x) == (p == 2 ? r : 2 * (r % 2) + 2));
  CHECK(world.split(r, 0).size() == 1);
}

TEST_CASE("communicator: what does not fit together is refused before anything is sent") {
  const Communicator world = Communicator::world();
  const Tensor x = full({4, 6}, 1);
  CHECK_THROWS_WITH(world.all_reduce(x.slice_last(0, 2)), ContainsSubstring("rows of 2 elements 6 apart"));
  CHECK_THROWS_WITH(world.all_reduce({}), "all_reduce: the tensor is undefined");
  CHECK_THROWS_WITH(world.broadcast(x, world.size()), ContainsSubstring("broadcast: root"));
  CHECK_THROWS_WITH(world.all_gather(x, x), ContainsSubstring("does not make a whole"));
  CHECK_THROWS_WITH(world.shift(x, x), ContainsSubstring("they must be alike and apart"));
  CHECK_THROWS_AS(world.shift(x, full({4, 6}, 1), 2), Error);
  CHECK_THROWS_AS(world.with_chunk(0), Error);
  CHECK_THROWS_AS(world.with_chunk(int64_t{1} << 31), Error);
}

TEST_CASE("communicator: tensors on different devices are refused; a group of one is alike on all") {
  const Communicator world = Communicator::world(), alone;
  if (devices().size() == 1) return;
  const Tensor x = full({4, 6}, 1), there = full({4, 6}, 1, DType::f32, Device::cuda);
  CHECK_THROWS_WITH(world.shift(x, there), "shift: tensor [4, 6] is on cpu but tensor [4, 6] on cuda");
  CHECK_THROWS_WITH(alone.all_gather(there, x), "all_gather: tensor [4, 6] is on cuda but tensor [4, 6] on cpu");
  const Tensor y = full({4, 6}, 2, DType::f32, Device::cuda);
  alone.all_reduce(there);
  alone.broadcast(there);
  alone.all_gather(there, y);
  CHECK(bitwise_equal(y, x));
  alone.shift(there, y);
  CHECK(bitwise_equal(y, zeros({4, 6})));
  alone.shift(there, y, 1, Ends::ring);
  CHECK(bitwise_equal(y, x));
  fill(y, 0);
  alone.reduce_scatter(there, y);
  CHECK(bitwise_equal(y, x));
}

TEST_CASE("communicator: large sums on GPUs are the same bits, run after run and chunk by chunk") {
  const Communicator world = Communicator::world();
  if (devices().size() == 1) return;
  const int64_t n = 5'000'011;
  const Tensor x = to_device(brought({n}, world.rank(), DType::f32), Device::cuda), expected = clone(x);
  world.with_chunk(1 << 18).all_reduce(expected);
  CHECK(bitwise_equal(expected, sum_of_all({n}, world.size(), DType::f32)));
  for (int run = 0; run < 10; ++run) {
    const Tensor again = clone(x);
    world.all_reduce(again);
    CHECK(bitwise_equal(again, expected));
  }
}

TEST_CASE("mesh: world is data x sequence x tensor, and tensor neighbours are neighbours") {
  const Communicator world = Communicator::world();
  const int64_t p = world.size();
  const Mesh plain(world);
  CHECK(plain.data.size() == p);
  CHECK(plain.data.rank() == world.rank());
  CHECK(plain.tensor.size() * plain.sequence.size() == 1);
  CHECK_THROWS_WITH(Mesh(world, {.tensor = 3}), ContainsSubstring("processes cannot be cut into"));
  for (const MeshSizes sizes : {MeshSizes{.tensor = 2}, MeshSizes{.sequence = 2}, MeshSizes{.data = p / 2, .tensor = 2},
                                MeshSizes{.tensor = p / 2, .sequence = 2}}) {
    const Mesh mesh(world, sizes);
    CHECK(mesh.tensor.size() == sizes.tensor);
    CHECK(mesh.sequence.size() == sizes.sequence);
    CHECK(mesh.data.size() * mesh.sequence.size() * mesh.tensor.size() == p);
    CHECK(world.rank() ==
          (mesh.data.rank() * mesh.sequence.size() + mesh.sequence.rank()) * mesh.tensor.size() + mesh.tensor.rank());
    for (const Device device : devices()) {
      const Tensor x = full({1}, static_cast<double>(world.rank()), DType::f64, device);
      for (const Communicator& group : {mesh.data, mesh.tensor, mesh.sequence}) group.all_reduce(x);
      CHECK(item(x) == static_cast<double>(p * (p - 1) / 2));  // every rank once: the three groups span the world
    }
  }
}
