// Elementary functions for CPU kernels, float and double, written without branches, tables or calls: with the kernel
// flags GCC turns a loop over them into AVX2. Each is correct with and without contraction to FMA.
//
//   exp(x)                                                    <= 1 ulp, subnormal results included
//   log(x)                                                    <= 1 ulp; log(0) = -inf, log(negative) = NaN
//   expm1(x) = exp(x) - 1                                     <= 2 ulp
//   softplus(x) = log(1 + exp(x))                             <= 2 ulp, also for x -> -inf, where it is exp(x)
//   sigmoid(x) = 1 / (1 + exp(-x)), the slope of softplus     <= 2.5 ulp
//   tanh(x)                                                   <= 3 ulp
//   silu(x) = x sigmoid(x)                                    <= 3.5 ulp
//   silu_gradient(x) = sigmoid(x) (1 + x (1 - sigmoid(x)))    <= 4.5 ulp; around its zero, x = -1.278, of 1/8
//
// NaN stays NaN; at +-inf each takes its limit, so that silu(-inf) = -0. An ulp is that of the true result, which
// tests/vector_math_test.cpp measures. Range reduction is Cody & Waite 1980; coefficients are minimax (Remez).
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>

namespace adder::math {

template <class T>
concept Real = std::same_as<T, float> || std::same_as<T, double>;

template <Real T>
struct Ieee;  // the layout of T, and what depends on its range

template <>
struct Ieee<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa = 23;
  static constexpr float bias = 127, round = 0x1.8p23f;  // x + round - round is x to the nearest integer
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 1.42860682e-6f;  // n ln2_high is exact
  static constexpr float limit = 120;  // exp(-limit) limit is still zero, exp(limit) infinite
};

template <>
struct Ieee<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa = 52;
  static constexpr double bias = 1023, round = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 1.9082149292705878e-10;
  static constexpr double limit = 800;
};

// Every function here is forced inline: a kernel's copy (AVX2) must never stand in for that of a plain source file.

template <Real T>
[[gnu::always_inline]] constexpr T polynomial(T, T c) {
  return c;
}

/// c0 + c1 x + c2 x^2 + ...
template <Real T, class... Rest>
[[gnu::always_inline]] constexpr T polynomial(T x, T c0, Rest... rest) {
  return c0 + x * polynomial(x, T(rest)...);
}

template <Real T>
[[gnu::always_inline]] inline T absolute(T x) {
  using Bits = typename Ieee<T>::Bits;
  return std::bit_cast<T>(std::bit_cast<Bits>(x) & (~Bits(0) >> 1));
}

/// The nearest integer of a small x.
template <Real T>
[[gnu::always_inline]] inline T nearest(T x) {
  return (x + Ieee<T>::round) - Ieee<T>::round;
}

/// 2^n for an integer n in the range of normal numbers.
template <Real T>
[[gnu::always_inline]] inline T power_of_two(T n) {
  using Bits = typename Ieee<T>::Bits;  // the low bits of n + round are those of n; shifted, they are the exponent
  return std::bit_cast<T>(Bits(std::bit_cast<Bits>(n + (Ieee<T>::round + Ieee<T>::bias)) << Ieee<T>::mantissa));
}

/// exp(x) = (1 + p) low high with powers of two: one factor alone overflows, and keeps no subnormal result exact.
template <Real T>
struct ExpParts {
  T p, low, high;
  T inverse_high;
};

template <Real T>
[[gnu::always_inline]] inline ExpParts<T> exp_parts(T x) {
  using I = Ieee<T>;
  x = x < -I::limit ? -I::limit : x;
  x = x > I::limit ? I::limit : x;
  const T n = nearest(x * T(1.4426950408889634074));
  const T high = x - n * I::ln2_high, low = n * I::ln2_low, r = high - low;  // high is exact, |r| <= ln 2 / 2
  T q;                                                                       // (exp(r) - 1 - r) / r^2
  if constexpr (std::same_as<T, float>) {
    q = polynomial(r, 0.500000006f, 0.166665453f, 0.0416662898f, 0.008366374f, 0.00139460495f);
  } else {
    q = polynomial(r, 0.50000000000000046, 0.16666666666666684, 0.041666666666581785, 0.0083333333333155562,
                   0.0013888888930272124, 0.00019841269901133422, 2.4801506559916033e-5, 2.7557229498596718e-6,
                   2.7625600894221584e-7, 2.5114025316023663e-8);
  }
  const T half = nearest(n * T(0.5));
  return {high + (r * r * q - low), power_of_two(half), power_of_two(n - half), power_of_two(half - n)};
}

/// log(1 + f) for sqrt(1/2) <= 1 + f <= sqrt(2), plus a correction: 2 atanh(s) with s = f / (2 + f), and 2s = f - s f.
template <Real T>
[[gnu::always_inline]] inline T log_near_one(T f, T correction) {
  const T s = f / (T(2) + f), w = s * s;
  T q;  // (2 atanh(s) - 2s) / s^3
  if constexpr (std::same_as<T, float>) {
    q = polynomial(w, 0.666667654f, 0.39978603f, 0.298478318f);
  } else {
    q = polynomial(w, 0.66666666666666989, 0.3999999999961189, 0.28571428703865342, 0.22222202139668376,
                   0.18183394151065759, 0.15318097211957662, 0.1475797375675587);
  }
  return f - (s * (f - w * q) - correction);
}

template <Real T>
[[gnu::always_inline]] inline T exp(T x) {
  const auto e = exp_parts(x);
  return (T(1) + e.p) * e.low * e.high;
}

template <Real T>
[[gnu::always_inline]] inline T expm1(T x) {
  const auto e = exp_parts(x);
  return ((e.low - e.inverse_high) + e.low * e.p) * e.high;
}

template <Real T>
[[gnu::always_inline]] inline T log(T x) {
  using I = Ieee<T>;
  using Bits = typename I::Bits;
  constexpr T infinity = std::numeric_limits<T>::infinity(), two_to_mantissa = T(Bits(1) << I::mantissa);
  const bool tiny = x < std::numeric_limits<T>::min();
  const T normal = tiny ? x * two_to_mantissa : x;
  // normal = 2^k (1 + f): the carry into the exponent starts at sqrt(1/2), and k is read through the mantissa of 2^m.
  constexpr Bits one = std::bit_cast<Bits>(T(1)), carry = one - std::bit_cast<Bits>(T(0.70710678118654752));
  const Bits bits = std::bit_cast<Bits>(normal) + carry;
  const T k = std::bit_cast<T>((bits >> I::mantissa) | std::bit_cast<Bits>(two_to_mantissa)) -
              (two_to_mantissa + (tiny ? I::bias + T(I::mantissa) : I::bias));
  const T f = std::bit_cast<T>((bits & ((Bits(1) << I::mantissa) - 1)) + (one - carry)) - T(1);
  const T y = k * I::ln2_high + log_near_one(f, k * I::ln2_low);
  return x > 0 ? (x < infinity ? y : x) : (x == 0 ? -infinity : std::numeric_limits<T>::quiet_NaN());
}

template <Real T>
[[gnu::always_inline]] inline T sigmoid(T x) {
  const T e = exp(-absolute(x));
  return (x < 0 ? e : T(1)) / (T(1) + e);
}

template <Real T>
[[gnu::always_inline]] inline T softplus(T x) {
  const T e = exp(-absolute(x));
  const bool large = e > T(0.41421356);  // there 1 + e = 2 (1 + f)
  const T f = large ? T(0.5) * (e - T(1)) : e;
  const T y = log_near_one(f, large ? Ieee<T>::ln2_low : T(0)) + (large ? Ieee<T>::ln2_high : T(0));
  return y + (x > 0 ? x : T(0));
}

template <Real T>
[[gnu::always_inline]] inline T silu(T x) {
  const T bounded = x < -Ieee<T>::limit ? -Ieee<T>::limit : x;
  const auto e = exp_parts(-absolute(bounded));
  const T low = (T(1) + e.p) * e.low;  // times high comes last: a subnormal exp(x) has lost digits
  return bounded * (x < 0 ? low : T(1)) / (T(1) + low * e.high) * (x < 0 ? e.high : T(1));
}

template <Real T>
[[gnu::always_inline]] inline T silu_gradient(T x) {
  T bounded = x < -Ieee<T>::limit ? -Ieee<T>::limit : x;
  bounded = bounded > Ieee<T>::limit ? Ieee<T>::limit : bounded;
  const auto parts = exp_parts(-absolute(bounded));
  const T low = (T(1) + parts.p) * parts.low, e = low * parts.high;
  const T numerator = x < 0 ? low * ((T(1) + bounded) + e) : T(1) + e * (T(1) + bounded);
  return numerator / (T(1) + e * (T(2) + e)) * (x < 0 ? parts.high : T(1));
}

template <Real T>
[[gnu::always_inline]] inline T tanh(T x) {
  using Bits = typename Ieee<T>::Bits;
  constexpr Bits sign = ~(~Bits(0) >> 1);
  const T a = absolute(x), t = expm1(T(2) * (a > 20 ? T(20) : a));  // tanh(20) rounds to 1
  return std::bit_cast<T>(std::bit_cast<Bits>(t / (t + T(2))) | (std::bit_cast<Bits>(x) & sign));
}

}  // namespace adder::math
