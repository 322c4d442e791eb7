#include "adder/kernels/cross_entropy.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"

#include "catch.h"

#include <cmath>
#include <limits>

using namespace adder;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Labels that walk through the vocabulary; every fifth token is not counted.
Tensor labels(const Shape& shape, int64_t vocabulary) {
  std::vector<int32_t> values(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = i % 5 == 3 ? not_counted : static_cast<int32_t>(static_cast<int64_t>(7 * i + 2) % vocabulary);
  return from_host(shape, values);
}

struct Reference {
  double loss = 0;
  std::vector<double> tokens, dx, dweight;
};

// All logits at once, straight from the formulas, in long double.
Reference naive(const Tensor& x, const Tensor& weight, const Tensor& targets, int64_t vocabulary, double scale,
                double z) {
  const auto a = to_host(x), w = to_host(weight), t = to_host(targets);
  const size_t d = static_cast<size_t>(x.size(-1)), tokens = a.size() / d, n = static_cast<size_t>(vocabulary);
  Reference r{0, std::vector<double>(tokens), std::vector<double>(a.size()), std::vector<double>(w.size())};
  for (size_t i = 0; i < tokens; ++i) {
    if (t[i] < 0) continue;
    std::vector<long double> logits(n);
    long double most = -infinity, sum = 0;
    for (size_t j = 0; j < n; ++j) {
      for (size_t k = 0; k < d; ++k) logits[j] += static_cast<long double>(a[i * d + k]) * w[j * d + k];
      most = std::max(most, logits[j]);
    }
    for (const auto logit : logits) sum += std::exp(logit - most);
    const long double lse = most + std::log(sum);
    r.tokens[i] = static_cast<double>(lse - logits[static_cast<size_t>(t[i])]);
    r.loss += scale * (r.tokens[i] + static_cast<double>(z * lse * lse));
    for (size_t j = 0; j < n; ++j) {
      const double is_target = static_cast<double>(j) == t[i];
      const double dlogit = scale * (static_cast<double>(std::exp(logits[j] - lse) * (1 + 2 * z * lse)) - is_target);
      for (size_t k = 0; k < d; ++k) {
        r.dx[i * d + k] += dlogit * w[j * d + k];
        r.dweight[j * d + k] += dlogit * a[i * d + k];
      }
    }
  }
  return r;
}

}  // namespace

TEST_CASE("cross_entropy: loss and gradients are those of the full logits, any chunk, vocabulary and z-loss") {
  const int64_t chunk = GENERATE(0, 1, 7, 22, 21, 1000), vocabulary = GENERATE(1, 31, 33, 67);  // 21 tokens
  const double z = GENERATE(0.0, 1e-2);
  const int64_t padded = vocabulary + 5, d = 6;
  const Tensor x = random_normal({3, 7, d}, 1), weight = random_normal({padded, d}, 2), t = labels({3, 7}, vocabulary);
  const Tensor scale = full({1}, 0.25, DType::f64);
  const Reference r = naive(x, weight, t, vocabulary, 0.25, z);
  const Tensor a = leaf(x), w = leaf(weight);
  const Tensor loss = backward(apply(LinearCrossEntropy{
      .x = a, .weight = w, .targets = t, .scale = scale, .vocabulary = vocabulary, .z_loss = z, .chunk = chunk}));
  // f64 roundings of sums over at most 67 x 21 numbers of size one to ten
  CHECK(loss.shape() == Shape{1});
  CHECK(item(loss) == Approx(r.loss).epsilon(1e-13).margin(1e-13));
  CHECK(max_difference(gradient(a), from_host(x.shape(), r.dx, DType::f64)) < 1e-13);
  CHECK(max_difference(gradient(w), from_host(weight.shape(), r.dweight, DType::f64)) < 1e-13);
  const Tensor tokens = token_losses(x, weight, t, vocabulary, chunk);
  CHECK(max_difference(tokens, from_host(t.shape(), r.tokens, DType::f64)) < 1e-13);
  CHECK(max_difference(gradient(w).slice_first(vocabulary, padded), zeros({5, d}, DType::f64)) == 0);
}

TEST_CASE("cross_entropy: gradients agree with differences, rows apart included") {
  const double z = GENERATE(0.0, 0.1);
  const int64_t chunk = GENERATE(0, 1, 5);
  const bool wide = GENERATE(false, true);
  const auto f = [&](std::span<const Tensor> in) {
    const Tensor t = labels({2, 4}, 35);
    return std::vector{apply(LinearCrossEntropy{.x = in[0], .weight = in[1], .targets = t, .scale = in[2],
                                                .vocabulary = 35, .z_loss = z, .chunk = chunk})};
  };
  const Tensor x = wide ? random_normal({2, 4, 9}, 1).slice_last(2, 7) : random_normal({2, 4, 5}, 1);
  const Tensor weight = wide ? random_normal({40, 9}, 2).slice_last(3, 8) : random_normal({40, 5}, 2);
  const auto g = check_gradients(f, {x, weight, Tensor()});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
  CHECK(bitwise_equal(f(std::vector{x, weight, Tensor()})[0], f(std::vector{clone(x), clone(weight), Tensor()})[0]));
}

TEST_CASE("cross_entropy: f32 follows f64") {
  const Tensor x = to(random_normal({64, 48}, 1), DType::f32), weight = to(random_normal({257, 48}, 2), DType::f32);
  const Tensor t = labels({64}, 257), scale = full({1}, 1.0 / 64, DType::f64);
  std::vector<Tensor> results[2];
  for (const DType type : {DType::f32, DType::f64}) {
    const Tensor a = leaf(to(x, type)), w = leaf(to(weight, type));
    const Tensor loss = backward(apply(LinearCrossEntropy{
        .x = a, .weight = w, .targets = t, .scale = scale, .z_loss = 1e-3, .chunk = 10}));
    results[type == DType::f64] = {loss, gradient(a), gradient(w)};
  }
  // Logits of size 7 to 30 carry roundings of 2^-24 times that: 1e-6 relative in each probability.
  for (size_t i = 0; i < 3; ++i) CHECK(relative_rms(results[0][i], results[1][i]) < 3e-6);
}

TEST_CASE("cross_entropy: no counted token gives zero, whatever the scale") {
  const Tensor x = leaf(random_normal({3, 4}, 1)), w = leaf(random_normal({5, 4}, 2));
  const Tensor t = from_host({3}, std::vector<int32_t>(3, not_counted));
  const Tensor loss = backward(
      apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t, .scale = full({1}, infinity, DType::f64)}));
  CHECK(item(loss) == 0);
  CHECK(max_difference(gradient(x), zeros({3, 4}, DType::f64)) == 0);
  CHECK(max_difference(gradient(w), zeros({5, 4}, DType::f64)) == 0);
  const Tensor none = leaf(Tensor({0, 4}, DType::f64));
  CHECK(item(apply(LinearCrossEntropy{.x = none, .weight = w, .targets = Tensor({0}, DType::i32)})) == 0);
}

TEST_CASE("cross_entropy: logits of 1e4 are finite and exact, and infinite ones of uncounted tokens do not leak") {
  const Tensor w = leaf(from_host({3, 1}, std::vector<double>{1, -1, 0.999}, DType::f32));
  const Tensor x = leaf(from_host({2, 1}, std::vector<double>{1e4, -1e4}, DType::f32));
  const Tensor t = from_host({2}, std::vector<int32_t>{1, 1});
  const Tensor loss = backward(apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t}));
  CHECK(item(loss) == Approx(2e4).epsilon(1e-6));  // 2e4 + exp(-10) and exp(-19990), in f32
  CHECK(to_host(gradient(x))[0] == Approx(2).epsilon(1e-3));  // p is (1, 0, exp(-10)), the lse is 1e4 within 2^-11
  CHECK(to_host(gradient(x))[1] == Approx(0).margin(1e-3));
  const Tensor big = from_host({2, 1}, std::vector<double>{1, 3e38}, DType::f32), v = leaf(full({3, 1}, 10));
  const Tensor masked = from_host({2}, std::vector<int32_t>{0, not_counted});
  CHECK(item(backward(apply(LinearCrossEntropy{.x = big, .weight = v, .targets = masked}))) ==
        Approx(std::log(3.0)).epsilon(1e-6));
  CHECK(to_host(gradient(v))[1] == Approx(1.0 / 3).epsilon(1e-6));
}

TEST_CASE("cross_entropy: NaN in the activations reaches the loss and the gradients") {
  const Tensor x = leaf(full({2, 3}, std::numeric_limits<double>::quiet_NaN(), DType::f64));
  const Tensor w = leaf(random_normal({40, 3}, 2));
  const Tensor t = from_host({2}, std::vector<int32_t>{1, 0});
  CHECK(std::isnan(item(backward(apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t})))));
  CHECK(std::isnan(to_host(gradient(x))[0]));
}

TEST_CASE("cross_entropy: logits of the whole batch never exist, and the tape holds one number a token") {
  const int64_t tokens = 4096, d = 8, vocabulary = 4099;
  const Tensor x = leaf(random_normal({tokens, d}, 1, 1, 0, DType::f32));
  const Tensor w = leaf(random_normal({vocabulary, d}, 2, 1, 0, DType::f32)), t = labels({tokens}, vocabulary);
  const int64_t before = memory_use(Device::cpu).in_use;
  const Tensor loss = apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t});
  CHECK(memory_use(Device::cpu).in_use - before == 4 * tokens + 64);  // the logsumexp; the loss takes a cache line
  backward(loss);
  reset_peak(Device::cpu);
  const int64_t held = memory_use(Device::cpu).in_use;
  backward(apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t}));
  CHECK(memory_use(Device::cpu).peak - held < tokens * vocabulary * 4 / 10);
}

TEST_CASE("cross_entropy: bad targets and shapes are named") {
  const Tensor x = random_normal({2, 2, 4}, 1), w = random_normal({10, 4}, 2);
  const auto with = [&](int32_t label, int64_t vocabulary) {
    const Tensor targets = from_host({2, 2}, std::vector<int32_t>{0, -1, label, 0});
    return LinearCrossEntropy{.x = x, .weight = w, .targets = targets, .vocabulary = vocabulary};
  };
  CHECK_NOTHROW(apply(with(9, 0)));
  CHECK_THROWS_WITH(apply(with(9, 9)), "LinearCrossEntropy: target 9 at position 2 is outside the vocabulary of 9");
  CHECK_THROWS_WITH(apply(with(-2, 9)), "LinearCrossEntropy: target -2 at position 2 is outside the vocabulary of 9");
  CHECK_THROWS_WITH(apply(with(1, 11)), "LinearCrossEntropy: a vocabulary of 11 but weight [10, 4]");
  const Tensor flat = from_host({4}, std::vector<int32_t>(4));
  CHECK_THROWS_WITH(token_losses(x, w, flat), "LinearCrossEntropy: x [2, 2, 4] but targets [4]");
  CHECK_THROWS_WITH(token_losses(x, w.slice_last(0, 3), flat), "LinearCrossEntropy: x [2, 2, 4] but weight [10, 3]");
}
