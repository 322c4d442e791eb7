#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/view.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <array>
#include <cmath>
#include <concepts>
#include <limits>

using namespace adder;

namespace {
// The triple loop.
Tensor naive(const Tensor& a, const Tensor& b, bool ta, bool tb) {
  const auto x = to_host(a), y = to_host(b);
  const int64_t batch = a.rank() == 3 ? a.size(0) : 1, m = a.size(ta ? -1 : -2), k = a.size(ta ? -2 : -1),
                n = b.size(tb ? -2 : -1);
  std::vector<double> c(static_cast<size_t>(batch * m * n));
  for (int64_t s = 0; s < batch; ++s)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t l = 0; l < k; ++l)
          c[static_cast<size_t>((s * m + i) * n + j)] +=
              x[static_cast<size_t>(s * m * k + (ta ? l * m + i : i * k + l))] *
              y[static_cast<size_t>(s * n * k + (tb ? j * k + l : l * n + j))];
  return from_host(a.rank() == 3 ? Shape{batch, m, n} : Shape{m, n}, c, DType::f64);
}
}  // namespace

TEST_CASE("matmul: batched products equal the triple loop, every transpose") {
  const bool ta = GENERATE(false, true), tb = GENERATE(false, true);
  const int64_t batch = GENERATE(0, 1, 3);  // 0: plain matrices
  const auto shape = [&](int64_t r, int64_t c) { return batch ? Shape{batch, r, c} : Shape{r, c}; };
  const Tensor a = random_normal(ta ? shape(7, 5) : shape(5, 7), 1),
               b = random_normal(tb ? shape(3, 7) : shape(7, 3), 2);
  const auto f = [&](std::span<const Tensor> t) {
    return std::vector{apply(BatchedMatmul{.a = t[0], .b = t[1], .transpose_a = ta, .transpose_b = tb})};
  };
  CHECK(max_difference(f(std::vector{a, b})[0], naive(a, b, ta, tb)) < 1e-14);  // seven f64 roundings of O(1) numbers
  const auto g = check_gradients(f, {a, b});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("matmul: a linear map with and without bias, rows apart") {
  const bool bias = GENERATE(false, true);
  const Tensor wide = random_normal({2, 3, 11}, 1), x = wide.slice_last(2, 9);
  const Tensor w = random_normal({5, 7}, 2), b = bias ? random_normal({5}, 3) : Tensor();
  const Tensor y = apply(Matmul{.x = x, .weight = w, .bias = b}),
               same = apply(Matmul{.x = clone(x), .weight = w, .bias = b});
  CHECK(y.shape() == Shape{2, 3, 5});
  CHECK(bitwise_equal(y, same));
  const auto g = check_gradients(
      [](std::span<const Tensor> t) { return std::vector{apply(Matmul{.x = t[0], .weight = t[1], .bias = t[2]})}; },
      {clone(x), w, b});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("matmul: beta 0 overwrites NaN, and wrong shapes are named") {
  const Tensor a = random_normal({2, 3}, 1), b = random_normal({3, 2}, 2);
  const Tensor c = full({2, 2}, std::numeric_limits<double>::quiet_NaN(), DType::f64);
  multiply({.a = a, .b = b, .c = c});
  CHECK(max_difference(c, naive(a, b, false, false)) < 1e-14);
  CHECK_THROWS_WITH(multiply({.a = a, .b = a, .c = c}),
                    Catch::Matchers::Equals("multiply: a [2, 3] times b [2, 3] is not c [2, 2]"));
  CHECK_THROWS_WITH(apply(Matmul{.x = a, .weight = a.slice_last(0, 2), .bias = {}}),
                    Catch::Matchers::Equals("Matmul: x [2, 3] but weight [2, 2]"));
}

TEST_CASE("matmul: a product that threads share, by rows or columns, rows apart, is added to what is there") {
  const bool ta = GENERATE(false, true), tb = GENERATE(false, true), tall = GENERATE(false, true);
  const int64_t m = tall ? 301 : 90, n = tall ? 90 : 301, k = 41;  // more than 2^20 multiplications
  const auto wide = [](int64_t rows, int64_t columns, uint64_t seed) {
    return random_normal({rows, columns + 5}, seed).slice_last(2, columns + 2);
  };
  const Tensor a = ta ? wide(k, m, 1) : wide(m, k, 1), b = tb ? wide(n, k, 2) : wide(k, n, 2);
  const Tensor around = full({m, n + 5}, 1, DType::f64), c = around.slice_last(2, n + 2);
  multiply({.a = a, .b = b, .c = c, .transpose_a = ta, .transpose_b = tb, .beta = 1});
  auto expected = to_host(naive(a, b, ta, tb));
  for (double& e : expected) e += 1;
  CHECK(max_difference(c, from_host({m, n}, expected, DType::f64)) < 1e-13);  // sums of 41 f64 numbers of O(1)
  for (const Tensor& edge : {around.slice_last(0, 2), around.slice_last(n + 2, n + 5)})
    CHECK(max_difference(edge, full({m, edge.size(1)}, 1, DType::f64)) == 0);
}

TEST_CASE("matmul: products on every backend agree with f64, every transpose", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const bool ta = GENERATE(false, true), tb = GENERATE(false, true);
  const int64_t batch = GENERATE(0, 3);
  const auto sizes = GENERATE(std::array<int64_t, 3>{1, 1, 1}, std::array<int64_t, 3>{5, 7, 3},
                              std::array<int64_t, 3>{64, 129, 40});
  const auto [m, k, n] = sizes;
  const auto shape = [&](int64_t r, int64_t c) { return batch ? Shape{batch, r, c} : Shape{r, c}; };
  const auto f = [&](std::span<const Tensor> t) {
    return std::vector{apply(BatchedMatmul{.a = t[0], .b = t[1], .transpose_a = ta, .transpose_b = tb})};
  };
  check_at(place, f,
           {random_normal(ta ? shape(k, m) : shape(m, k), 1), random_normal(tb ? shape(n, k) : shape(k, n), 2)},
           1e-6);  // sums of 129 f32 products
}

TEST_CASE("matmul: a linear map on every backend agrees with f64, with bias, rows apart", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const bool bias = GENERATE(false, true);
  const int64_t rows = GENERATE(1, 13, 1500), out = GENERATE(5, 64);  // 1500: sums of rows in two steps
  const auto f = [&](std::span<const Tensor> t) {
    const auto parts = apply(Split{.x = t[0], .sizes = {8, 24, 3}});
    return std::vector{apply(Matmul{.x = parts[1], .weight = t[1], .bias = t[2]}), parts[0], parts[2]};
  };
  check_at(place, f,
           {random_normal({rows, 35}, 1), random_normal({out, 24}, 2), bias ? random_normal({out}, 3) : Tensor()},
           2e-6);  // sums of 1500 f32 numbers
}

TEST_CASE("matmul: gradients of bf16 are added into f32", "[gpu][small]") {
  if (no_gpu()) return;
  const auto on_gpu = [](const Tensor& t, DType type) { return to_device(to(t, type), Device::cuda); };
  const Tensor x = to(random_normal({33, 17}, 1), DType::bf16), dy = to(random_normal({33, 9}, 2), DType::bf16);
  const Tensor sum = full({9, 17}, 0, DType::f32, Device::cuda);
  const Tensor w = leaf(on_gpu(random_normal({9, 17}, 3), DType::bf16), sum);
  for (int times = 0; times < 2; ++times) {
    const Tensor y = apply(Matmul{.x = to_device(x, Device::cuda), .weight = w, .bias = {}}),
                 d = to_device(dy, Device::cuda);
    backward({&y, 1}, {&d, 1});
  }
  auto expected = to_host(naive(to(dy, DType::f64), to(x, DType::f64), true, false));
  for (double& e : expected) e *= 2;
  CHECK(relative_rms(sum, from_host({9, 17}, expected, DType::f64)) < 1e-6);  // products of bf16 are exact in f32
}

TEST_CASE("matmul: every algorithm that cuBLASLt proposes gives the product", "[gpu]") {
  if (no_gpu()) return;
  const Tensor a = random_normal({96, 200}, 1, 1, 0, DType::f32), b = random_normal({96, 64}, 2, 1, 0, DType::f32);
  const Tensor exact = naive(to(a, DType::f64), to(b, DType::f64), true, false);
  on(Device::cuda, [&](auto backend) {
    if constexpr (std::same_as<decltype(backend), Cuda>) {
      const Tensor c = full(exact.shape(), 0, DType::f32, Device::cuda);
      const auto ways = ways_to_multiply(
          backend, {.a = to_device(a, Device::cuda), .b = to_device(b, Device::cuda), .c = c, .transpose_a = true});
      REQUIRE(!ways.empty());
      for (const ProductWay& way : ways) {
        INFO(way.name);
        fill(c, 99);
        way.multiply();
        CHECK(relative_rms(c, exact) < 1e-6);  // sums of 96 f32 products
      }
    }
  });
}

TEST_CASE("matmul: few rows on every backend agree with f64, in pieces of 16 bytes or not, rows apart",
          "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t rows = GENERATE(1, 3, 8, 9, 16, 17, 33, 64, 65);  // 65: too many for the kernel of few rows
  const auto [in, out] = GENERATE(table<int64_t, int64_t>({{8, 1}, {40, 9}, {1048, 23}, {16, 4099}, {12, 5}}));
  const int64_t offset = GENERATE(0, 8, 1);  // 1: x does not lie at 16 bytes
  const bool bias = out == 9 || out == 4099, wide = out >= 23;  // of the logits
  const auto f = [&](std::span<const Tensor> t) {
    const auto parts = apply(Split{.x = t[0], .sizes = {offset, in, 16 - offset}});
    return std::vector{apply(Matmul{.x = parts[1], .weight = t[1], .bias = t[2], .wide = wide}), parts[0], parts[2]};
  };
  check_at(place, f,
           {random_normal({rows, in + 16}, 1), random_normal({out, in}, 2), bias ? random_normal({out}, 3) : Tensor()},
           2e-6);  // sums of 4099 f32 products
}

TEST_CASE("matmul: a row among few has the bits of the row alone", "[gpu][small]") {
  if (no_gpu()) return;
  const auto on_gpu = [](const Tensor& t) { return to_device(to(t, DType::bf16), Device::cuda); };
  const Tensor x = on_gpu(random_normal({64, 776}, 1));
  const Tensor w = on_gpu(random_normal({GENERATE(520, 2056), 776}, 2));
  const Tensor all = apply(Matmul{.x = x, .weight = w, .bias = {}});
  for (const int64_t i : {0, 7, 8, 15, 16, 39, 63}) {
    const Tensor alone = apply(Matmul{.x = x.slice_first(i, i + 1), .weight = w, .bias = {}});
    CHECK(bitwise_equal(alone, all.slice_first(i, i + 1)));
  }
}
