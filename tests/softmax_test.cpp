#include "adder/kernels/softmax.h"

#include "catch.h"

#include <cmath>
#include <limits>
#include <vector>

using namespace adder;

namespace {
constexpr double infinity = std::numeric_limits<double>::infinity();
}

TEST_CASE("softmax: the largest number, wherever it stands; infinity where a number is NaN") {
  const size_t size = GENERATE(1, 7, 8, 65, 50277), at = size / 2;
  std::vector<double> x(size, -3);
  x[at] = 2.5;
  CHECK(largest(x) == 2.5);
  x[at] = -infinity;
  CHECK(largest(x) == (size == 1 ? -infinity : -3));
  for (const double odd : {infinity, std::nan("")}) {
    x[at] = odd;
    CHECK(largest(x) == infinity);
  }
  CHECK(largest({}) == -infinity);
}

TEST_CASE("softmax: exponentials are those of the standard library, and their sum") {
  const size_t size = GENERATE(1, 7, 8, 65, 1000);
  const double temperature = GENERATE(1.0, 0.25, 3.0);
  std::vector<double> x(size);
  double sum = 0;
  for (size_t i = 0; i < size; ++i) x[i] = std::sin(static_cast<double>(i)) * 20;
  x[size - 1] = -infinity;
  const std::vector<double> before = x;
  const double returned = exponentials(x, 20, temperature);
  for (size_t i = 0; i < size; ++i) {
    const double exact = std::exp((before[i] - 20) / temperature);
    sum += x[i];
    // The exponent, at most 160, is rounded, and so is the exponential.
    CHECK(std::abs(x[i] - exact) <= 4e-16 * 160 * exact);
  }
  CHECK(x[size - 1] == 0);
  CHECK(returned == Approx(sum).epsilon(1e-13));  // of 1000 numbers, in another order
}
