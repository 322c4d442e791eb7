#include "adder/kernels/softmax.h"

#include "adder/kernels/vector_math.h"

#include <cstddef>
#include <limits>

namespace adder {

double largest(std::span<const double> x) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  double top = -infinity;
#pragma omp simd reduction(max : top)
  for (size_t i = 0; i < x.size(); ++i) {
    const double bounded = x[i] < infinity ? x[i] : infinity;  // NaN is not less either
    top = bounded > top ? bounded : top;
  }
  return top;
}

double exponentials(std::span<double> x, double shift, double temperature) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = math::exp((x[i] - shift) / temperature);
    sum += x[i];
  }
  return sum;
}

}  // namespace adder
