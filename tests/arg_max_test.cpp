#include "adder/kernels/arg_max.h"

#include "adder/tests/places.h"

#include <limits>

using namespace adder;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double no_number = std::numeric_limits<double>::quiet_NaN();

std::vector<double> found(const Tensor& x) {
  const Tensor to({x.size(0)}, DType::i32, x.device());
  arg_max(x, to);
  return to_host(to);
}

std::vector<double> found_in(std::vector<double> row, Device device) {
  return found(from_host({1, static_cast<int64_t>(row.size())}, row, DType::f32, device));
}

std::vector<Device> devices() {
  if (gpu_count() == 0) return {Device::cpu};
  return {Device::cpu, Device::cuda};
}

}  // namespace

TEST_CASE("arg_max: the lowest of the largest, whatever the signs; what is no number is named", "[gpu][small]") {
  for (const Device device : devices()) {
    INFO(name(device));
    CHECK(found_in({-3, -1, -2, -1}, device) == std::vector<double>{1});
    CHECK(found_in({-0.0, 0, -1}, device) == std::vector<double>{0});
    CHECK(found_in({-1, 0, -0.0}, device) == std::vector<double>{1});
    CHECK(found_in({-infinity, -1e38, -infinity}, device) == std::vector<double>{1});
    CHECK(found_in({-infinity, -infinity}, device) == std::vector<double>{-1});
    CHECK(found_in({1, no_number, infinity, no_number}, device) == std::vector<double>{-3});
    CHECK(found_in({1, 2, infinity, -no_number}, device) == std::vector<double>{-4});
  }
}

TEST_CASE("arg_max: every backend agrees with a search, at odd sizes, rows apart or not", "[gpu][small]") {
  const int64_t columns = GENERATE(1, 3, 4, 31, 257, 4099, 50277), pitch = columns + GENERATE(0, 1, 4, 11);
  const int64_t rows = 3;
  const Tensor x = random_normal({rows, pitch}, static_cast<uint64_t>(columns), 1, 0, DType::f32);
  const auto numbers = to_host(contiguous(x.slice_last(0, columns)));
  std::vector<double> expected;
  for (int64_t i = 0; i < rows; ++i) {
    const auto row = numbers.begin() + i * columns;
    expected.push_back(static_cast<double>(std::max_element(row, row + columns) - row));
  }
  for (const Device device : devices()) {
    INFO(name(device) << ", " << columns << " columns, " << pitch << " apart");
    CHECK(found(to_device(x, device).slice_last(0, columns)) == expected);
  }
}
