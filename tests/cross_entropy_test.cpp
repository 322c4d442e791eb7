#include "adder/kernels/cross_entropy.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/tests/places.h"

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

Tensor at(const Place& place, const Tensor& t) { return to_device(to(t, place.type), place.device); }

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
  const bool at_once = GENERATE(false, true);
  const int64_t padded = vocabulary + 5, d = 6;
  const Tensor x = random_normal({3, 7, d}, 1), weight = random_normal({padded, d}, 2), t = labels({3, 7}, vocabulary);
  const Tensor scale = full({1}, 0.25, DType::f64);
  const Reference r = naive(x, weight, t, vocabulary, 0.25, z);
  const Tensor a = leaf(x), w = leaf(weight);
  const Tensor loss = backward(apply(LinearCrossEntropy{
      .x = a, .weight = w, .targets = t, .scale = scale, .vocabulary = vocabulary, .z_loss = z, .chunk = chunk,
      .with_gradients = at_once}));
  // f64 roundings of sums over at most 67 x 21 numbers of size one to ten
  CHECK(loss.shape() == Shape{1});
  CHECK(item(loss) == Approx(r.loss).epsilon(1e-13).margin(1e-13));
  CHECK(max_difference(gradient(a), from_host(x.shape(), r.dx, DType::f64)) < 1e-13);
  CHECK(max_difference(gradient(w), from_host(weight.shape(), r.dweight, DType::f64)) < 1e-13);
  const Tensor tokens = token_losses(x, weight, t, vocabulary, chunk);
  CHECK(max_difference(tokens, from_host(t.shape(), r.tokens, DType::f64)) < 1e-13);
  CHECK(max_difference(gradient(w).slice_first(vocabulary, padded), zeros({5, d}, DType::f64)) == 0);
}

TEST_CASE("cross_entropy: rows beyond the vocabulary change no bit", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t vocabulary = GENERATE(59, 64), d = 8;
  const Tensor t = to_device(labels({40}, vocabulary), place.device);
  const auto run = [&](double padding) {
    Tensor values = random_normal({72, d}, 2);
    fill(values.slice_first(vocabulary, 72), padding);
    const Tensor x = leaf(at(place, random_normal({40, d}, 1))), w = leaf(at(place, values));
    const Tensor loss = backward(apply(LinearCrossEntropy{
        .x = x, .weight = w, .targets = t, .vocabulary = vocabulary, .z_loss = 1e-3, .chunk = 16}));
    return std::array{loss, gradient(w), gradient(x), token_losses(x.detach(), w.detach(), t, vocabulary)};
  };
  const auto none = run(0), some = run(1e4), nan = run(std::nan(""));
  for (size_t k = 0; k < 4; ++k) CHECK(bitwise_equal(some[k], none[k]));
  for (const size_t k : {0, 1, 3}) CHECK(bitwise_equal(nan[k], none[k]));
  CHECK(max_difference(none[1].slice_first(vocabulary, 72), zeros({72 - vocabulary, d})) == 0);
}

TEST_CASE("cross_entropy: gradients agree with differences, rows apart included") {
  const double z = GENERATE(0.0, 0.1);
  const int64_t chunk = GENERATE(0, 1, 5);
  const bool wide = GENERATE(false, true), at_once = GENERATE(false, true);
  const auto f = [&](std::span<const Tensor> in) {
    const Tensor t = labels({2, 4}, 35);
    return std::vector{apply(LinearCrossEntropy{.x = in[0], .weight = in[1], .targets = t, .scale = in[2],
                                                .vocabulary = 35, .z_loss = z, .chunk = chunk,
                                                .with_gradients = at_once})};
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

TEST_CASE("cross_entropy: no counted token gives zero, whatever the scale", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const Tensor x = leaf(at(place, random_normal({3, 4}, 1))), w = leaf(at(place, random_normal({5, 4}, 2)));
  const Tensor t = from_host({3}, std::vector<int32_t>(3, not_counted), place.device);
  const Tensor scale = full({1}, infinity, DType::f64, place.device);
  const Tensor loss = backward(apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t, .scale = scale}));
  CHECK(item(loss) == 0);
  CHECK(max_difference(gradient(x), zeros({3, 4})) == 0);
  CHECK(max_difference(gradient(w), zeros({5, 4})) == 0);
  const Tensor none = leaf(at(place, zeros({0, 4}))), no_targets({0}, DType::i32, place.device);
  CHECK(item(apply(LinearCrossEntropy{.x = none, .weight = w, .targets = no_targets})) == 0);
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

TEST_CASE("cross_entropy: NaN in one token reaches the loss and its own gradient alone", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const Tensor values = random_normal({2, 8}, 1);
  fill(values.slice_first(1, 2), std::numeric_limits<double>::quiet_NaN());
  const Tensor x = leaf(at(place, values)), w = at(place, random_normal({40, 8}, 2));
  const Tensor t = from_host({2}, std::vector<int32_t>{1, 0}, place.device);
  CHECK(std::isnan(item(backward(apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t})))));
  for (int i = 0; i < 16; ++i) CHECK(std::isnan(to_host(gradient(x))[static_cast<size_t>(i)]) == (i >= 8));
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

TEST_CASE("cross_entropy: with gradients the tape holds these and nothing else") {
  const int64_t tokens = 4096, d = 8, vocabulary = 4096;
  const auto x = [&] { return leaf(random_normal({tokens, d}, 1, 1, 0, DType::f32)); };
  const Tensor w = leaf(random_normal({vocabulary, d}, 2, 1, 0, DType::f32)), t = labels({tokens}, vocabulary);
  const int64_t before = memory_use(Device::cpu).in_use;
  const Tensor loss = apply(LinearCrossEntropy{.x = x(), .weight = w, .targets = t, .with_gradients = true});
  CHECK(memory_use(Device::cpu).in_use - before == 4 * (tokens + vocabulary) * d + 64);  // the loss takes a cache line
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

TEST_CASE("cross_entropy: every backend agrees with f64", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t vocabulary = GENERATE(1, 33, 1000, 2051), d = GENERATE(8, 23);
  const double z = GENERATE(0.0, 1e-2);
  const bool at_once = GENERATE(false, true);
  const auto f = [&](std::span<const Tensor> in) {
    const Device device = in[0].device();
    return std::vector{apply(LinearCrossEntropy{
        .x = in[0], .weight = in[1], .targets = to_device(labels({5, 7}, vocabulary), device),
        .scale = full({1}, 0.25, DType::f64, device), .vocabulary = vocabulary, .z_loss = z,
        .with_gradients = at_once})};
  };
  check_at(place, f, {random_normal({5, 7, d}, 1), random_normal({vocabulary + 5, d}, 2, 0.3)},
           5e-6);  // logits up to 10 carry roundings of some 2^-24 times that, which is relative in a probability
}

TEST_CASE("cross_entropy: at the size of a language model, in more than one chunk or part", "[gpu]") {
  if (no_gpu()) return;
  const bool at_once = GENERATE(false, true);
  const Place place{Device::cuda, GENERATE(DType::f32, DType::bf16)};
  const int64_t tokens = 1300, vocabulary = 50257;  // odd; 1280 tokens are a chunk in f32, 512 a part in bf16
  const auto f = [&](std::span<const Tensor> in) {
    const Device device = in[0].device();
    return std::vector{apply(LinearCrossEntropy{
        .x = in[0], .weight = in[1], .targets = to_device(labels({tokens}, vocabulary), device),
        .scale = full({1}, 1.0 / tokens, DType::f64, device), .vocabulary = vocabulary, .z_loss = 1e-4,
        .with_gradients = at_once})};
  };
  check_at(place, f, {random_normal({tokens, 64}, 1), random_normal({50288, 64}, 2, 0.3)},
           1e-5);  // as above; logits reach 15, and their sums are over 50257 columns
}

TEST_CASE("cross_entropy: chunks add in f32 to a weight's gradient; ten runs give the same bits", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t tokens = 200, vocabulary = 515, d = 48;
  const bool at_once = GENERATE(false, true);
  const auto run = [&](Device device, DType type, DType gradients) {
    const auto rounded = [&](const Tensor& t) { return to_device(to(to(t, place.type), type), device); };
    const Tensor x = leaf(rounded(random_normal({tokens, d}, 1)));
    const Tensor w = leaf(rounded(random_normal({520, d}, 2, 0.3)), zeros({520, d}, gradients, device));
    const Tensor loss = backward(apply(LinearCrossEntropy{
        .x = x, .weight = w, .targets = to_device(labels({tokens}, vocabulary), device),
        .scale = full({1}, 1.0 / tokens, DType::f64, device), .vocabulary = vocabulary, .chunk = 16,
        .with_gradients = at_once}));
    return std::array{loss, gradient(w), gradient(x)};
  };
  const auto exact = run(Device::cpu, DType::f64, DType::f64), first = run(place.device, place.type, DType::f32);
  CHECK(first[0].dtype() == DType::f32);
  // f32: as above. bf16: the loss comes from the rounded operands in f32; each gradient of a logit is off by up to
  // 2^-8, less than half of that in the mean, and so is dx, while the weight's sums lose nothing more.
  const bool bf16 = place.type == DType::bf16;
  CHECK(relative_rms(first[0], exact[0]) < 1e-6);
  CHECK(relative_rms(first[1], exact[1]) < (bf16 ? 2.5e-3 : 3e-6));
  CHECK(relative_rms(first[2], exact[2]) < (bf16 ? 4e-3 : 3e-6));
  CHECK(max_difference(first[1].slice_first(vocabulary, 520), zeros({5, d})) == 0);
  for (int i = 0; i < 9; ++i) {
    const auto again = run(place.device, place.type, DType::f32);
    for (size_t k = 0; k < 3; ++k) CHECK(bitwise_equal(again[k], first[k]));
  }
}

TEST_CASE("cross_entropy: the kernels agree with f64 on any row, also near 1e4 and at infinity", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t n = GENERATE(1, 3, 257, 8193, 50285), begin = GENERATE(0, 1, 4);  // where rows start in wider ones
  const double z = GENERATE(0.0, 1e-3);
  const Shape rows{5, n}, tokens{5};
  const Tensor logits = random_normal({5, n + 7}, 1, 2, 0, DType::f32).slice_last(begin, begin + n);
  copy(random_normal({1, n}, 2, 1, 1e4, DType::f32), logits.slice_first(1, 2));
  fill(logits.slice_first(2, 3), infinity);  // its label is -1
  fill(logits.slice_first(3, 4).slice_last(0, n / 2), -infinity);
  const std::vector<int32_t> label{0, static_cast<int32_t>(n / 2), not_counted, static_cast<int32_t>(n - 1), 0};
  struct Result {
    Tensor losses, logsumexp, dlogits;
  };
  const auto run = [&](Device device, DType type, DType gradient_type) {
    const Tensor wide = to_device(full({5, n + 7}, 0, type), device);
    const Tensor x = wide.slice_last(begin, begin + n), targets = from_host(tokens, label, device);
    copy(logits, x);
    const Result r{Tensor(tokens, type, device), Tensor(tokens, type, device),
                   gradient_type == type ? x : Tensor(rows, gradient_type, device)};
    on(device, [&](auto backend) {
      cross_entropy_forward(backend, x, targets, z, r.losses, r.logsumexp);
      cross_entropy_backward(backend, {.logits = x, .dlogits = r.dlogits, .targets = targets,
                                       .logsumexp = r.logsumexp, .dloss = full({1}, 2, type, device),
                                       .scale = full({1}, 0.5, DType::f64, device), .z_loss = z});
    });
    // What lies beside the rows is left alone.
    CHECK(max_difference(wide.slice_last(0, begin), zeros({5, begin})) == 0);
    CHECK(max_difference(wide.slice_last(begin + n, n + 7), zeros({5, 7 - begin})) == 0);
    return r;
  };
  const Result exact = run(Device::cpu, DType::f64, DType::f64), r = run(place.device, DType::f32, place.type);
  for (const int64_t i : {0, 1, 2, 3, 4}) {
    INFO("row " << i);
    const auto row = [&](const Tensor& t) { return t.slice_first(i, i + 1); };
    // Some f32 roundings of the numbers that are added: 1 stands for those that cancel.
    CHECK(max_difference(row(r.losses), row(exact.losses)) < 1e-6 * (1 + item(row(exact.losses))));
    CHECK(max_difference(row(r.logsumexp), row(exact.logsumexp)) < 1e-6 * (1 + std::abs(item(row(exact.logsumexp)))));
    // Near 1e4 an f32 logsumexp is off by up to 2^-11, and so is each probability. A single probability of 1
    // cancels. A bf16 is off by up to 2^-8.
    const double tolerance = (i == 1 ? 6e-4 : n == 1 ? 1e-4 : 3e-6) + (place.type == DType::bf16 ? 0x1p-8 : 0);
    CHECK(relative_rms(row(r.dlogits), row(exact.dlogits)) < tolerance);
  }
}

TEST_CASE("cross_entropy: on the GPU a target out of range makes loss and gradients NaN", "[gpu][small]") {
  if (no_gpu()) return;
  const int32_t bad = GENERATE(-2, 9, 10, 2'000'000'000);
  const Tensor x = leaf(to_device(random_normal({4, 8}, 1, 1, 0, DType::f32), Device::cuda));
  const Tensor w = leaf(to_device(random_normal({10, 8}, 2, 1, 0, DType::f32), Device::cuda));
  const Tensor t = from_host({4}, std::vector<int32_t>{0, -1, bad, 0}, Device::cuda);
  const auto tokens = to_host(token_losses(x, w, t, 9));
  for (size_t i = 0; i < 4; ++i) CHECK(std::isnan(tokens[i]) == (i == 2));
  CHECK(std::isnan(item(backward(apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t, .vocabulary = 9})))));
  CHECK(std::isnan(to_host(gradient(x))[2 * 8]));
  CHECK(std::isnan(to_host(gradient(w))[0]));
}

TEST_CASE("cross_entropy: on the GPU a step needs some half a GiB beside its gradients", "[gpu]") {
  if (no_gpu()) return;
  const bool at_once = GENERATE(false, true);
  const auto normal = [](const Shape& shape, uint64_t seed) {
    return leaf(to_device(to(random_normal(shape, seed), DType::bf16), Device::cuda));
  };
  const Tensor x = normal({8192, 64}, 1), w = normal({50288, 64}, 2);
  const Tensor t = to_device(labels({8192}, 50288), Device::cuda);
  const auto step = [&] {
    backward(apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t, .with_gradients = at_once}));
  };
  step();  // the gradients are there
  const int64_t held = memory_use(Device::cuda).in_use;
  reset_peak(Device::cuda);
  step();
  CHECK(memory_use(Device::cuda).peak - held < 550'000'000);  // 412 + 103 MB; with the gradients 14 more
}
