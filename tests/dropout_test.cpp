#include "adder/kernels/dropout.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/core/random.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <omp.h>

#include <cmath>

using namespace adder;

namespace {

Tensor at(int32_t step, int32_t row) { return from_host({2}, std::vector<int32_t>{step, row}); }

Tensor drop(const Tensor& x, double p, uint64_t key, const Tensor& position) {
  return apply(Dropout{.x = x, .p = p, .key = key, .position = position});
}

}  // namespace

TEST_CASE("dropout: the mask is the documented function of key, step and global index") {
  const uint64_t key = Random(7, "block.3.dropout").key();
  const double p = GENERATE(0.1, 0.5, 0.9);
  const Shape shape = GENERATE(Shape{1}, Shape{3, 7}, Shape{3, 257, 5});
  const int32_t first = GENERATE(0, 1, 2'000'000'000);  // the last: indices past 2^32
  const auto y = to_host(drop(full(shape, 1, DType::f64), p, key, at(41, first)));
  const auto row = static_cast<uint64_t>(shape.count() / shape[0]);
  int64_t wrong = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const uint64_t g = static_cast<uint64_t>(first) * row + i, block = g / 4;
    const auto words = philox({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 41, 0},
                              {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
    wrong += y[i] != (words[g % 4] >= std::floor(p * 0x1p32) ? 1 / (1 - p) : 0);
  }
  CHECK(wrong == 0);
}

TEST_CASE("dropout: micro-batches, threads and rows apart do not change the bits; step and key do") {
  const Tensor x = random_normal({6, 5, 77}, 1, 1, 0, DType::f32);
  const Tensor whole = drop(x, 0.3, 5, at(2, 10));
  CHECK(bitwise_equal(drop(x.slice_first(4, 6), 0.3, 5, at(2, 14)), clone(whole.slice_first(4, 6))));
  const int threads = omp_get_max_threads();
  omp_set_num_threads(3);
  CHECK(bitwise_equal(drop(x, 0.3, 5, at(2, 10)), whole));
  omp_set_num_threads(threads);
  const Tensor wide = random_normal({6, 5, 80}, 2, 1, 0, DType::f32), apart = wide.slice_last(1, 78);
  CHECK(bitwise_equal(drop(apart, 0.3, 5, at(2, 10)), drop(clone(apart), 0.3, 5, at(2, 10))));
  CHECK_FALSE(bitwise_equal(drop(x, 0.3, 5, at(3, 10)), whole));
  CHECK_FALSE(bitwise_equal(drop(x, 0.3, 6, at(2, 10)), whole));
}

TEST_CASE("dropout: keeps a share of 1 - p and the mean") {
  const int64_t n = 1 << 20;
  const auto y = to_host(drop(full({1, n}, 1, DType::f64), 0.2, 9, at(0, 0)));
  double kept = 0, sum = 0;
  for (const double v : y) {
    kept += v != 0;
    sum += v;
  }
  const double deviation = std::sqrt(0.2 * 0.8 / static_cast<double>(n));  // of the share of a fair mask
  CHECK(std::abs(kept / static_cast<double>(n) - 0.8) < 4 * deviation);
  CHECK(std::abs(sum / static_cast<double>(n) - 1) < 4 * deviation / 0.8);
}

TEST_CASE("dropout: gradients repeat the mask, even when the position has moved on") {
  const double p = GENERATE(0.0, 0.4);
  const auto g = check_gradients([&](std::span<const Tensor> t) { return std::vector{drop(t[0], p, 3, at(1, 2))}; },
                                 {random_normal({3, 11}, 1)});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
  const Tensor x = leaf(full({2, 300}, 1, DType::f64)), position = at(1, 2);
  const Tensor dy = full({2, 303}, 1, DType::f64).slice_last(1, 301);
  const Tensor y = drop(x, p, 3, position);
  fill(position, 99);
  backward({&y, 1}, {&dy, 1});
  CHECK(bitwise_equal(clone(gradient(x)), y.detach()));
}

TEST_CASE("dropout: p = 0 is the identity, NaN can be dropped, the tape keeps the position, bad input is named") {
  const Tensor x = random_normal({4, 64}, 1);
  CHECK(drop(x, 0, 1, {}).same_storage(x));
  int64_t zero = 0;
  for (const double v : to_host(drop(full({1, 64}, std::nan(""), DType::f64), 0.5, 1, at(0, 0)))) zero += v == 0;
  CHECK(zero > 0);
  const int64_t before = memory_use(Device::cpu).in_use;
  const Tensor y = drop(leaf(random_normal({4, 64}, 2)), 0.5, 1, at(0, 0));
  CHECK(memory_use(Device::cpu).in_use - before == 4 * 64 * 8 + 64);  // the pool's smallest block
  CHECK_THROWS_WITH(drop(x, 1, 1, at(0, 0)), Catch::Matchers::Equals("Dropout: probability 1 is outside [0, 1)"));
  CHECK_THROWS_WITH(drop(x, 0.5, 1, x), Catch::Matchers::Equals("Dropout: position f64 [4, 64] is not i32 [2]"));
}

TEST_CASE("dropout: the GPU drops what the CPU drops", "[gpu][small]") {
  if (no_gpu()) return;
  const Shape shape = GENERATE(Shape{1}, Shape{3, 7}, Shape{3, 257, 5});
  const int32_t first = GENERATE(0, 1, 2'000'000'000);
  const DType type = GENERATE(DType::f32, DType::bf16);
  const Tensor x = to(random_normal(shape, 1), type), position = at(41, first);
  const Tensor y = drop(to(x, DType::f32), 0.3, 5, position);
  const Tensor there = drop(to_device(x, Device::cuda), 0.3, 5, to_device(position, Device::cuda));
  CHECK(bitwise_equal(there, to(y, type)));  // one product in f32, rounded once
}
