#include "adder/distributed/collectives.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/matmul.h"
#include "adder/tests/mpi/devices.h"

#include "catch.h"

using namespace adder;

// Every rank checks the gradients of the same function of the same replicated inputs, in step with the others: inside,
// the function is computed in parts.

namespace {

Communicator world() { return Communicator::world(); }

// Something that every rank does differently, and that is not linear.
Tensor own(const Tensor& x) {
  return apply(Silu{
      .x = apply(Matmul{
          .x = x, .weight = random_normal({3, x.size(-1)}, 50 + static_cast<uint64_t>(world().rank())), .bias = {}})});
}

double error_of(const std::function<Tensor(const Tensor&)>& f, const Shape& shape) {
  const auto g = [&](std::span<const Tensor> in) { return std::vector<Tensor>{f(in[0])}; };
  const GradientCheck check = check_gradients(g, {random_normal(shape, 1)});
  UNSCOPED_INFO(check.worst);
  return check.error;
}

constexpr double tolerance = 1e-6;

}  // namespace

TEST_CASE("collectives: Replicate and SumPartial are a pair: a sum of what each rank makes of x") {
  const auto f = [](const Tensor& x) {
    return apply(SumPartial{.x = own(apply(Replicate{.x = x, .group = world()})), .group = world()});
  };
  CHECK(error_of(f, {5, 4}) < tolerance);
  double expected = 0;
  const Tensor x = random_normal({1, 4}, 3);
  for (int64_t r = 0; r < world().size(); ++r)
    expected += to_host(apply(Silu{
        .x = apply(Matmul{.x = x, .weight = random_normal({3, 4}, 50 + static_cast<uint64_t>(r)), .bias = {}})}))[2];
  CHECK(to_host(f(x))[2] == Approx(expected).epsilon(1e-14));
}

TEST_CASE("collectives: TakePart and JoinParts are a pair: each rank works on its part") {
  const PartAxis axis = GENERATE(PartAxis::first, PartAxis::last);
  const int64_t p = world().size();
  const auto f = [&](const Tensor& x) {
    const Tensor part = apply(TakePart{.x = x, .group = world(), .axis = axis});
    return apply(JoinParts{.x = own(part), .group = world(), .axis = axis});
  };
  const auto identity = [&](const Tensor& x) {
    return apply(
        JoinParts{.x = apply(TakePart{.x = x, .group = world(), .axis = axis}), .group = world(), .axis = axis});
  };
  for (const Shape& shape : {Shape{2 * p, 3, p}, Shape{p, p}, Shape{3 * p, 1, 5 * p}}) {
    CHECK(error_of(f, shape) < tolerance);
    CHECK(bitwise_equal(identity(random_normal(shape, 2)), random_normal(shape, 2)));
  }
}

TEST_CASE(
    "collectives: GatherParts and ScatterPartial are a pair: parts of the sum of what each rank makes of all parts") {
  const PartAxis axis = GENERATE(PartAxis::first, PartAxis::last);
  const int64_t p = world().size();
  const Communicator group = world().with_chunk(3);
  const auto f = [&](const Tensor& x) {
    const Tensor part = apply(TakePart{.x = x, .group = group, .axis = axis});
    const Tensor all = apply(GatherParts{.x = part, .group = group, .axis = axis});
    const Tensor mine = apply(Matmul{
        .x = own(all), .weight = random_normal({2 * p, 3}, 60 + static_cast<uint64_t>(group.rank())), .bias = {}});
    const Tensor sum = apply(ScatterPartial{.x = mine, .group = group, .axis = axis});
    return apply(JoinParts{.x = apply(Silu{.x = sum}), .group = group, .axis = axis});
  };
  for (const Shape& shape : {Shape{p, 3, 2 * p}, Shape{3 * p, p}}) CHECK(error_of(f, shape) < tolerance);
}

TEST_CASE("collectives: Shift is its own partner, the other way") {
  const int64_t p = world().size(), by = GENERATE(1, -1);
  const auto f = [&](const Tensor& x) {
    const Tensor part = apply(TakePart{.x = x, .group = world(), .axis = PartAxis::first});
    const Tensor moved = apply(Shift{.x = own(part), .group = world(), .by = by});
    return apply(JoinParts{.x = apply(Silu{.x = moved}), .group = world(), .axis = PartAxis::first});
  };
  CHECK(error_of(f, {2 * p, 3}) < tolerance);
}

TEST_CASE("collectives: on GPUs the operators and their gradients have the bits that they have on the CPU") {
  if (devices().size() == 1) return;
  const int64_t p = world().size();
  const PartAxis axis = GENERATE(PartAxis::first, PartAxis::last);
  const Communicator group = world();
  // Every operator once; what each rank does differently is a product with a small number, which is exact everywhere.
  const auto f = [&](const Tensor& x) {
    const Tensor mine = apply(Scale{.x = apply(Replicate{.x = x, .group = group}),
                                    .factor = static_cast<double>(1 + world().rank())});
    const Tensor total = apply(SumPartial{.x = mine, .group = group});
    const Tensor part = apply(TakePart{.x = total, .group = group, .axis = axis});
    const Tensor all = apply(GatherParts{.x = apply(Shift{.x = part, .group = group}), .group = group, .axis = axis});
    const Tensor sum = apply(ScatterPartial{.x = all, .group = group, .axis = axis});
    return apply(JoinParts{.x = sum, .group = group, .axis = axis});
  };
  const auto outcome = [&](Device device) {
    const Tensor x = leaf(to_device(random_normal({3 * p, 5 * p}, 1, 1, 0, DType::f32), device)), y = f(x);
    const Tensor dy = to_device(random_normal(y.shape(), 2, 1, 0, DType::f32), device);
    backward({&y, 1}, {&dy, 1});
    return std::pair(y.detach(), gradient(x));
  };
  const auto [y, dx] = outcome(Device::cpu);
  const auto [y_there, dx_there] = outcome(Device::cuda);
  CHECK(bitwise_equal(y_there, y));
  CHECK(bitwise_equal(dx_there, dx));
  CHECK(relative_rms(dx, zeros(dx.shape())) > 0);
}

TEST_CASE("collectives: a group of one is the identity, without a copy") {
  const Communicator alone;
  const Tensor x = random_normal({4, 6}, 1);
  CHECK(apply(Replicate{.x = x, .group = alone}).same_storage(x));
  CHECK(apply(SumPartial{.x = x, .group = alone}).same_storage(x));
  CHECK(apply(TakePart{.x = x, .group = alone}).same_storage(x));
  CHECK(apply(JoinParts{.x = x, .group = alone}).same_storage(x));
  CHECK(apply(GatherParts{.x = x, .group = alone}).same_storage(x));
  CHECK(apply(ScatterPartial{.x = x, .group = alone}).same_storage(x));
  CHECK(bitwise_equal(apply(Shift{.x = x, .group = alone}), zeros({4, 6}, DType::f64)));
}

TEST_CASE("collectives: an axis that cannot be cut is named") {
  const Tensor x = random_normal({5, 7}, 1);
  CHECK_THROWS_WITH(apply(TakePart{.x = x, .group = world()}),
                    ContainsSubstring("TakePart: the last axis of x [5, 7] cannot be cut into"));
  CHECK_THROWS_WITH(apply(ScatterPartial{.x = x, .group = world(), .axis = PartAxis::first}),
                    ContainsSubstring("ScatterPartial: the first axis of x [5, 7]"));
}
