#include "adder/kernels/vector_math.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "catch.h"

using namespace adder;
using math::Real;

namespace {

// The reference: 64 bits of mantissa or more, so it is exact to 0.01 ulp of a double.
using Long = long double;

enum class Function { exp, log, expm1, softplus, sigmoid, tanh, silu, silu_gradient };

template <Real T>
[[gnu::always_inline]] inline void apply(Function function, const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) switch (function) {
      case Function::exp: y[i] = math::exp(x[i]); break;
      case Function::log: y[i] = math::log(x[i]); break;
      case Function::expm1: y[i] = math::expm1(x[i]); break;
      case Function::softplus: y[i] = math::softplus(x[i]); break;
      case Function::sigmoid: y[i] = math::sigmoid(x[i]); break;
      case Function::tanh: y[i] = math::tanh(x[i]); break;
      case Function::silu: y[i] = math::silu(x[i]); break;
      case Function::silu_gradient: y[i] = math::silu_gradient(x[i]); break;
    }
}

// Contracted to FMA, as kernels are; plain code on x86 is not. (No templates: GCC forgets these options on them.)
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#pragma GCC optimize("O2")
#endif
void apply_contracted(Function f, const float* x, float* y, int64_t n) { apply(f, x, y, n); }
void apply_contracted(Function f, const double* x, double* y, int64_t n) { apply(f, x, y, n); }
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC pop_options
#endif

template <Real T>
std::vector<T> results(Function f, const std::vector<T>& x, bool contracted) {
  std::vector<T> y(x.size());
  contracted ? apply_contracted(f, x.data(), y.data(), std::ssize(x)) : apply(f, x.data(), y.data(), std::ssize(x));
  return y;
}

// |y - truth| in units of the last place that T has at max(|truth|, scale).
template <Real T>
double ulps(T y, Long truth, double scale) {
  using Limits = std::numeric_limits<T>;
  if (std::isinf(static_cast<T>(truth)) || std::isinf(y))
    return y == static_cast<T>(truth) ? 0 : std::numeric_limits<double>::infinity();
  if (std::isnan(y)) return std::numeric_limits<double>::infinity();
  int exponent = 0;
  std::frexp(std::max<Long>(std::abs(truth), scale), &exponent);
  const int last = std::max(exponent - Limits::digits, Limits::min_exponent - Limits::digits);
  return static_cast<double>(std::abs(truth - y) * std::ldexp(Long(1), -last));
}

// Of [from, to]: even and random points, magnitudes near 1, and magnitudes from subnormal to the largest.
template <Real T>
std::vector<T> points(double from, double to) {
  using Limits = std::numeric_limits<T>;
  std::mt19937_64 bits(1);
  std::uniform_real_distribution<double> anywhere(from, to), near(-4, 4),
      exponent(Limits::min_exponent - Limits::digits, std::log2(std::max(std::abs(from), std::abs(to))));
  std::vector<T> x;
  const int count = 20'000;
  for (int i = 0; i <= count; ++i) {
    const double any = std::exp2(exponent(bits)), one = std::exp2(near(bits));
    for (double v : {from + (to - from) * i / count, anywhere(bits), near(bits), any, -any, one, -one})
      if (from <= v && v <= to) x.push_back(static_cast<T>(v));
  }
  return x;
}

struct Range {
  double from, to, bound, scale = 0;
};

template <Real T>
void check_accuracy(Function f, const auto& reference, const Range& range) {
  const std::vector<T> x = points<T>(range.from, range.to);
  for (bool contracted : {false, true}) {
    const std::vector<T> y = results(f, x, contracted);
    double worst = 0;
    T at = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double error = ulps(y[i], static_cast<Long>(reference(static_cast<Long>(x[i]))), range.scale);
      if (!(error <= worst)) worst = error, at = x[i];
    }
    INFO((sizeof(T) == 4 ? "float" : "double") << (contracted ? ", contracted" : "") << ", worst at x = " << at);
    CHECK(worst <= range.bound);
  }
}

// The values at +inf, -inf and NaN.
template <Real T>
void check_limits(Function f, double at_infinity, double at_minus_infinity) {
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto same = [](T a, double b) { return std::isnan(b) ? std::isnan(a) : a == static_cast<T>(b); };
  for (bool contracted : {false, true}) {
    const std::vector<T> y = results(f, std::vector<T>{infinity, -infinity, nan}, contracted);
    INFO("contracted " << contracted << ": " << y[0] << ", " << y[1] << ", " << y[2]);
    CHECK(same(y[0], at_infinity));
    CHECK(same(y[1], at_minus_infinity));
    CHECK(std::isnan(y[2]));
  }
}

constexpr double inf = std::numeric_limits<double>::infinity();

Long true_sigmoid(Long x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); }
Long true_softplus(Long x) { return std::max<Long>(x, 0) + std::log1p(std::exp(-std::abs(x))); }
Long true_silu_gradient(Long x) { return true_sigmoid(x) * (1 + x * true_sigmoid(-x)); }

}  // namespace

// Bounds are those of vector_math.h. Ranges reach from results that underflow to zero to results that overflow.
TEST_CASE("vector math: exp is within 1 ulp, from subnormal results to overflow") {
  const auto truth = [](Long x) { return std::exp(x); };
  check_accuracy<float>(Function::exp, truth, {-106, 90, 1});
  check_accuracy<double>(Function::exp, truth, {-750, 712, 1});
  check_limits<float>(Function::exp, inf, 0);
  check_limits<double>(Function::exp, inf, 0);
}

TEST_CASE("vector math: log is within 1 ulp, from subnormal to large arguments") {
  const auto truth = [](Long x) { return std::log(x); };
  check_accuracy<float>(Function::log, truth, {0, 3e38, 1});
  check_accuracy<double>(Function::log, truth, {0, 1e308, 1});
  check_limits<float>(Function::log, inf, std::nan(""));
  check_limits<double>(Function::log, inf, std::nan(""));
  CHECK(math::log(0.0) == -inf);
  CHECK(math::log(-0.0f) == -inf);
  CHECK(std::isnan(math::log(-std::numeric_limits<float>::denorm_min())));
}

TEST_CASE("vector math: expm1 is within 2 ulp, at zero too") {
  const auto truth = [](Long x) { return std::expm1(x); };
  check_accuracy<float>(Function::expm1, truth, {-106, 90, 2});
  check_accuracy<double>(Function::expm1, truth, {-750, 712, 2});
  check_limits<float>(Function::expm1, inf, -1);
  check_limits<double>(Function::expm1, inf, -1);
}

TEST_CASE("vector math: softplus is within 2 ulp on both sides") {
  check_accuracy<float>(Function::softplus, true_softplus, {-106, 1e4, 2});
  check_accuracy<double>(Function::softplus, true_softplus, {-750, 1e4, 2});
  check_limits<float>(Function::softplus, inf, 0);
  check_limits<double>(Function::softplus, inf, 0);
}

TEST_CASE("vector math: sigmoid is within 2.5 ulp") {
  check_accuracy<float>(Function::sigmoid, true_sigmoid, {-106, 30, 2.5});
  check_accuracy<double>(Function::sigmoid, true_sigmoid, {-750, 60, 2.5});
  check_limits<float>(Function::sigmoid, 1, 0);
  check_limits<double>(Function::sigmoid, 1, 0);
}

TEST_CASE("vector math: tanh is within 3 ulp and odd") {
  const auto truth = [](Long x) { return std::tanh(x); };
  check_accuracy<float>(Function::tanh, truth, {-12, 12, 3});
  check_accuracy<double>(Function::tanh, truth, {-22, 22, 3});
  check_limits<float>(Function::tanh, 1, -1);
  check_limits<double>(Function::tanh, 1, -1);
  CHECK(std::signbit(math::tanh(-0.0)));
}

TEST_CASE("vector math: silu is within 3.5 ulp, where exp(x) is subnormal too") {
  const auto truth = [](Long x) { return x * true_sigmoid(x); };
  check_accuracy<float>(Function::silu, truth, {-112, 112, 3.5});
  check_accuracy<double>(Function::silu, truth, {-760, 760, 3.5});
  check_limits<float>(Function::silu, inf, 0);
  check_limits<double>(Function::silu, inf, 0);
}

TEST_CASE("vector math: the gradient of silu is within 4.5 ulp, around its zero within 4.5 ulp of 1/8") {
  check_accuracy<float>(Function::silu_gradient, true_silu_gradient, {-3, 112, 4.5, 0.125});
  check_accuracy<double>(Function::silu_gradient, true_silu_gradient, {-3, 760, 4.5, 0.125});
  check_accuracy<float>(Function::silu_gradient, true_silu_gradient, {-112, -3, 4.5});
  check_accuracy<double>(Function::silu_gradient, true_silu_gradient, {-760, -3, 4.5});
  check_limits<float>(Function::silu_gradient, 1, 0);
  check_limits<double>(Function::silu_gradient, 1, 0);
}
