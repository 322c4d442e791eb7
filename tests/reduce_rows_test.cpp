#include "adder/kernels/reduce_rows.h"

#include "adder/autograd/gradient_check.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <cmath>
#include <limits>

using namespace adder;

namespace {

constexpr float nan_ = std::numeric_limits<float>::quiet_NaN();

// On the device; back on the CPU.
Tensor reduced(const Tensor& rows, const Tensor& mine, int64_t own, Reduce by, Device device) {
  const Tensor to = to_device(clone(mine), device);  // one row may be where the result goes
  on(device, [&](auto backend) { reduce_rows(backend, to_device(rows, device), to, own, by, to); });
  return to_device(to, Device::cpu);
}

Tensor integers(Shape shape, uint64_t seed) {
  const auto x = to_host(random_normal(shape, seed, 1e9));
  std::vector<int32_t> values;
  for (const double v : x) values.push_back(static_cast<int32_t>(static_cast<int64_t>(v)));
  return from_host(shape, values);
}

std::vector<Device> devices() {
  if (gpu_count() == 0) return {Device::cpu};
  return {Device::cpu, Device::cuda};
}

}  // namespace

TEST_CASE("reduce_rows: the sum goes from the first row to the last, in f64, to the bit on every device",
          "[gpu][small]") {
  const Device device = GENERATE(from_range(devices()));
  const DType type = GENERATE(DType::f32, DType::f64, DType::bf16, DType::i32);
  const int64_t size = GENERATE(2, 5), n = GENERATE(1, 255, 257, 20'001), own = GENERATE(0, 1);
  const auto numbers = [&](Shape shape, uint64_t seed) {
    return type == DType::i32 ? integers(shape, seed) : random_normal(shape, seed, 1, 0, type);
  };
  const Tensor rows = numbers({size, n}, 1), mine = numbers({n}, 2);
  std::vector<double> sum(static_cast<size_t>(n));
  for (int64_t r = 0; r < size; ++r) {
    const auto row = to_host(r == own ? mine : rows.slice_first(r, r + 1).reshape({n}));
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += row[i];
  }
  Tensor expected;
  if (type == DType::i32) {  // modulo 2^32
    std::vector<int32_t> wrapped;
    for (const double x : sum) wrapped.push_back(static_cast<int32_t>(static_cast<int64_t>(x)));
    expected = from_host({n}, wrapped);
  } else {
    expected = from_host({n}, sum, type);
  }
  CHECK(bitwise_equal(reduced(rows, mine, own, Reduce::sum, device), expected));
}

TEST_CASE("reduce_rows: the maximum is the largest, and NaN is larger than anything", "[gpu][small]") {
  const Device device = GENERATE(from_range(devices()));
  const float infinity = std::numeric_limits<float>::infinity();
  const DType type = GENERATE(DType::f32, DType::bf16, DType::f64);
  const Tensor rows = from_host({3, 5}, std::vector<double>{1, nan_, -infinity, 3, -4,    //
                                                            2, 1, -infinity, nan_, -5,  //
                                                            9, 9, 9, 9, 9}, type);
  const Tensor mine = from_host({5}, std::vector<double>{0, 2, -infinity, 5, nan_}, type);
  const auto most = to_host(reduced(rows, mine, 2, Reduce::max, device));
  CHECK(most[0] == 2);
  CHECK(std::isnan(most[1]));
  CHECK(most[2] == -infinity);
  CHECK(std::isnan(most[3]));
  CHECK(std::isnan(most[4]));
  const Tensor whole = from_host({2, 2}, std::vector<int32_t>{-7, 2'000'000'000, -9, -2'000'000'000});
  CHECK(to_host(reduced(whole, from_host({2}, std::vector<int32_t>{-8, 1}), 1, Reduce::max, device)) ==
        std::vector<double>{-7, 2'000'000'000});
}
