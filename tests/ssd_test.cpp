#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/core/memory.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/ssd/ssd.h"
#include "adder/kernels/view.h"

#include "catch.h"

#include <algorithm>
#include <cmath>
#include <limits>

using namespace adder;

namespace {

struct Case {
  int64_t batch = 2, time = 11, heads = 4, width = 3, groups = 2, state = 5;
  bool z = false, D = true, D_per_channel = false, bias = true, initial = false, softplus = true;
  double dt_mean = -1, dt_scale = 1, A_mean = 0.5;
};

// Inputs in the order of Ssd::inputs().
std::vector<Tensor> inputs_of(const Case& c, uint64_t seed = 1) {
  const Shape x{c.batch, c.time, c.heads, c.width}, B{c.batch, c.time, c.groups, c.state};
  return {random_normal(x, seed),
          random_normal({c.batch, c.time, c.heads}, seed + 1, c.dt_scale, c.softplus ? c.dt_mean : 2),
          random_normal({c.heads}, seed + 2, 0.3, c.A_mean),
          random_normal(B, seed + 3),
          random_normal(B, seed + 4),
          c.D ? random_normal(c.D_per_channel ? Shape{c.heads, c.width} : Shape{c.heads}, seed + 5) : Tensor(),
          c.z ? random_normal(x, seed + 6) : Tensor(),
          c.bias ? random_normal({c.heads}, seed + 7, 0.3) : Tensor(),
          c.initial ? random_normal({c.batch, c.heads, c.width, c.state}, seed + 8) : Tensor()};
}

Ssd op_of(std::span<const Tensor> t, const Tensor& document = {}, int64_t chunk = 4, bool softplus = true) {
  return {.x = t[0], .dt = t[1], .A_log = t[2], .B = t[3], .C = t[4], .D = t[5], .z = t[6], .dt_bias = t[7],
          .initial_state = t[8], .document = document, .softplus = softplus, .chunk = chunk, .final_state = true};
}

std::array<Tensor, 2> run(std::span<const Tensor> t, const Tensor& document = {}, int64_t chunk = 4,
                          bool softplus = true) {
  return apply(op_of(t, document, chunk, softplus));
}

// An index into a row-major tensor.
struct At {
  std::vector<double> v;
  Shape shape;
  explicit At(const Tensor& t) : v(to_host(t)), shape(t.shape()) {}
  double& operator()(int64_t a, int64_t b = 0, int64_t c = 0, int64_t d = 0) {
    const int64_t i[] = {a, b, c, d};
    int64_t at = 0;
    for (int k = 0; k < shape.rank(); ++k) at = at * shape[k] + i[k];
    return v[static_cast<size_t>(at)];
  }
};

double softplus(double x) { return std::log1p(std::exp(-std::abs(x))) + std::max(x, 0.0); }

// Δ and a of every token, in the words of the paper.
struct Steps {
  At delta, a;
  Steps(const Ssd& op) : delta(op.dt), a(op.dt) {
    At A_log(op.A_log), bias(op.dt_bias ? op.dt_bias : zeros(op.A_log.shape(), DType::f64));
    for (int64_t b = 0; b < op.dt.size(0); ++b)
      for (int64_t t = 0; t < op.dt.size(1); ++t)
        for (int64_t h = 0; h < op.dt.size(2); ++h) {
          const double raw = delta(b, t, h) + bias(h);
          delta(b, t, h) = std::clamp(op.softplus ? softplus(raw) : raw, op.dt_min, op.dt_max);
          a(b, t, h) = -std::exp(A_log(h)) * delta(b, t, h);
        }
  }
};

int32_t document_at(const Ssd& op, int64_t b, int64_t t) {
  return op.document ? op.document.data<int32_t>()[b * op.document.size(1) + t] : 0;
}

double gated(At& z, bool has, int64_t b, int64_t t, int64_t h, int64_t p) {
  return has ? z(b, t, h, p) / (1 + std::exp(-z(b, t, h, p))) : 1;
}

double skip(const Ssd& op, At& D, int64_t h, int64_t p) { return op.D ? (op.D.rank() == 2 ? D(h, p) : D(h)) : 0; }

// The recurrence, token by token.
std::array<Tensor, 2> recurrence(const Ssd& op) {
  Steps s(op);
  At x(op.x), B(op.B), C(op.C), D(op.D ? op.D : op.A_log), z(op.z ? op.z : op.x), y(op.x);
  const int64_t per = op.x.size(2) / op.B.size(2), P = op.x.size(3), N = op.B.size(3);
  At S(op.initial_state ? op.initial_state : zeros({op.x.size(0), op.x.size(2), P, N}, DType::f64));
  for (int64_t b = 0; b < op.x.size(0); ++b)
    for (int64_t h = 0; h < op.x.size(2); ++h)
      for (int64_t t = 0; t < op.x.size(1); ++t) {
        const bool starts = t > 0 && document_at(op, b, t) != document_at(op, b, t - 1);
        for (int64_t p = 0; p < P; ++p) {
          double sum = skip(op, D, h, p) * x(b, t, h, p);
          for (int64_t n = 0; n < N; ++n) {
            double& cell = S(b, h, p, n);
            const double before = starts ? 0 : std::exp(s.a(b, t, h)) * cell;
            cell = before + s.delta(b, t, h) * x(b, t, h, p) * B(b, t, h / per, n);
            sum += cell * C(b, t, h / per, n);
          }
          y(b, t, h, p) = sum * gated(z, op.z.defined(), b, t, h, p);
        }
      }
  return {from_host(op.x.shape(), y.v, DType::f64), from_host(S.shape, S.v, DType::f64)};
}

// The quadratic (attention) form: Y = (L ∘ C Bᵀ) Δ X, from the state zero.
Tensor quadratic(const Ssd& op) {
  Steps s(op);
  At x(op.x), B(op.B), C(op.C), D(op.D ? op.D : op.A_log), z(op.z ? op.z : op.x), y(op.x);
  const int64_t per = op.x.size(2) / op.B.size(2), P = op.x.size(3), N = op.B.size(3);
  for (int64_t b = 0; b < op.x.size(0); ++b)
    for (int64_t h = 0; h < op.x.size(2); ++h)
      for (int64_t i = 0; i < op.x.size(1); ++i) {
        std::vector<double> sum(static_cast<size_t>(P));
        for (int64_t p = 0; p < P; ++p) sum[static_cast<size_t>(p)] = skip(op, D, h, p) * x(b, i, h, p);
        double log_decay = 0;
        for (int64_t j = i; j >= 0; --j) {
          double score = 0;
          for (int64_t n = 0; n < N; ++n) score += C(b, i, h / per, n) * B(b, j, h / per, n);
          score *= std::exp(log_decay) * s.delta(b, j, h);
          for (int64_t p = 0; p < P; ++p) sum[static_cast<size_t>(p)] += score * x(b, j, h, p);
          if (j > 0 && document_at(op, b, j) != document_at(op, b, j - 1)) break;
          log_decay += s.a(b, j, h);
        }
        for (int64_t p = 0; p < P; ++p)
          y(b, i, h, p) = sum[static_cast<size_t>(p)] * gated(z, op.z.defined(), b, i, h, p);
      }
  return from_host(op.x.shape(), y.v, DType::f64);
}

Tensor documents(int64_t batch, int64_t time, std::vector<int64_t> starts) {
  Tensor t({batch, time}, DType::i32);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0, d = 0; i < time; ++i) {
      for (int64_t s : starts) d += s + b == i;
      t.data<int32_t>()[b * time + i] = static_cast<int32_t>(d % 2);  // ids alternate: 0, 1, 0 are three documents
    }
  return t;
}

void check_gradients_of(const Case& c, const Tensor& document, int64_t chunk, double least = 0, double most = 1e300) {
  const auto g = check_gradients(
      [&](std::span<const Tensor> t) {
        Ssd op = op_of(t, document, chunk, c.softplus);
        op.dt_min = least;
        op.dt_max = most;
        const auto [y, final_state] = apply(op);
        return std::vector{y, final_state};
      },
      inputs_of(c));
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

constexpr double rounding = 1e-12;  // f64, sums of up to thousands of O(1) numbers; relative

}  // namespace

TEST_CASE("ssd: chunked equals the token recurrence equals the quadratic form") {
  const int64_t time = GENERATE(1, 2, 63, 64, 65, 257), chunk = GENERATE(0, 1, 7, 64, 128);
  for (const bool z : {false, true})
    for (const bool packed : {false, true}) {
      const Case c{.batch = 2, .time = time, .heads = 4, .width = 3, .groups = 2, .state = 5, .z = z};
      const auto t = inputs_of(c);
      const Tensor document = packed ? documents(2, time, {1, 2, 40, 64, 100, 128, 200}) : Tensor();
      const auto [y, last] = run(t, document, chunk);
      const auto [y_r, last_r] = recurrence(op_of(t, document));
      CHECK(relative_rms(y, y_r) < rounding);
      CHECK(relative_rms(last, last_r) < rounding);
      if (chunk == 0) CHECK(relative_rms(y, quadratic(op_of(t, document))) < rounding);
    }
}

TEST_CASE("ssd: 4096 tokens, chunked equals recurrent equals quadratic") {
  const auto t = inputs_of(
      {.batch = 1, .time = 4096, .heads = 2, .width = 4, .groups = 1, .state = 3, .initial = true, .dt_mean = -4});
  const auto [y, last] = run(t, {}, 0);
  const auto [y_r, last_r] = recurrence(op_of(t));
  CHECK(relative_rms(y, y_r) < rounding);
  CHECK(relative_rms(last, last_r) < rounding);
  auto alone = t;  // the quadratic form knows no state
  alone[8] = {};
  CHECK(relative_rms(run(alone, {}, 0)[0], quadratic(op_of(alone))) < rounding);
}

TEST_CASE("ssd: extreme decays and time steps stay exact") {
  Case c{.batch = 1, .time = 65, .heads = 2, .width = 3, .groups = 1, .state = 4, .initial = true};
  SECTION("dt_bias +10") { c.dt_mean = 10; }
  SECTION("dt_bias -20") { c.dt_mean = -20; }
  SECTION("A -1e-4") { c.A_mean = std::log(1e-4); }
  SECTION("A -200") { c.A_mean = std::log(200); }
  auto t = inputs_of(c);
  SECTION("Δ of 10 and 1e-3 mixed in one chunk, A -16") {
    At dt(t[1]);
    for (size_t i = 0; i < dt.v.size(); ++i) dt.v[i] = i % 7 == 3 ? 10 : -6.9;
    t[1] = from_host(dt.shape, dt.v, DType::f64);
    t[2] = full({2}, std::log(16), DType::f64);
  }
  for (Tensor& x : t)
    if (x) x = leaf(x);
  const auto [y, last] = run(t, {}, 0);
  const auto [y_r, last_r] = recurrence(op_of(t));
  CHECK(relative_rms(y, y_r) < rounding);
  CHECK(relative_rms(last, last_r) < rounding);
  // In f32 the same, to f32's rounding of the inputs and of sums over a chunk.
  std::vector<Tensor> single;
  for (const Tensor& x : t) single.push_back(x ? to(x.detach(), DType::f32) : x);
  const auto [y_s, last_s] = run(single, {}, 0);
  CHECK(relative_rms(y_s, y_r) < 1e-5);
  CHECK(relative_rms(last_s, last_r) < 1e-5);
  const Tensor dy = random_normal(y.shape(), 9);
  backward({&y, 1}, {&dy, 1});
  for (const Tensor& x : t)
    if (x)
      for (double v : to_host(gradient(x))) REQUIRE(std::isfinite(v));
}

TEST_CASE("ssd: after large decays small ones lose no digits, in f32 and where e^a is cut") {
  // Every second a is -39: at the end of the chunk their sum is -1250, where neighbours in f32 lie 1.2e-4 apart.
  const Case c{.batch = 1, .time = 64, .heads = 1, .width = 2, .groups = 1, .state = 3, .D = false, .bias = false,
               .softplus = false};
  auto t = inputs_of(c);
  t[2] = zeros({1}, DType::f64);
  for (int64_t i = 0; i < 64; ++i) t[1].data<double>()[i] = i % 2 ? 0.01 : 39;
  std::vector<Tensor> single;
  for (Tensor& x : t) {
    single.push_back(x ? to(x, DType::f32) : x);
    if (x) x = to(single.back(), DType::f64);
  }
  CHECK(relative_rms(run(single, {}, 64, false)[0], run(t, {}, 64, false)[0]) < 1e-6);  // a few roundings of 6e-8
  // A decay of 1e20 that stays in the sum would swallow those after it, even in 64 bits of mantissa.
  t[1].data<double>()[3] = 1e20;
  std::fill_n(t[0].data<double>() + 3 * 2, 2, 0.0);  // and Δ x stays small
  CHECK(relative_rms(run(t, {}, 64, false)[0], recurrence(op_of(t, {}, 64, false))[0]) < 1e-12);  // f64 sums of 64
}

TEST_CASE("ssd: a decay that is cut has no gradient") {
  // Every a is cut: tokens see themselves alone, y_t = Δ_t (B_t·C_t) x_t. The slope is A e^a < 1e10 e^-40; were it
  // computed, A times the rounding of what it multiplies would be about 1e-6.
  const Case c{.batch = 1, .time = 9, .heads = 1, .width = 1, .groups = 1, .state = 1, .D = false, .bias = false,
               .softplus = false};
  auto t = inputs_of(c);
  t[2] = full({1}, std::log(1e10), DType::f64);
  for (int64_t i = 0; i < 9; ++i) t[1].data<double>()[i] = 1 + 0.1 * static_cast<double>(i);
  t[1] = leaf(t[1]), t[2] = leaf(t[2]);
  const auto [y, last] = run(t, {}, 4, false);
  const Tensor dy = random_normal(y.shape(), 5);
  backward({&y, 1}, {&dy, 1});
  const auto x = to_host(t[0]), B = to_host(t[3]), C = to_host(t[4]), d = to_host(dy), ddt = to_host(gradient(t[1]));
  for (size_t i = 0; i < 9; ++i) CHECK(std::abs(ddt[i] - d[i] * x[i] * B[i] * C[i]) < 1e-13);  // products of O(1)
  CHECK(item(gradient(t[2])) == 0);
}

TEST_CASE("ssd: short documents beside a long one take memory by their own length") {
  const int64_t time = 512;
  const Case c{.batch = 2, .time = time, .heads = 1, .width = 2, .groups = 1, .state = 2};
  const auto t = inputs_of(c);
  Tensor document = zeros({2, time}, DType::i32);
  for (int64_t i = 0; i < time; ++i) document.data<int32_t>()[time + i] = static_cast<int32_t>(i);
  reset_peak(Device::cpu);
  const int64_t before = memory_use(Device::cpu).in_use;
  const auto [y, last] = run(t, document, 64);
  // C Bᵀ of eight chunks of 64 and 512 of one token is 0.3 MB; 512 squares of 64 would be 16 MB.
  CHECK(memory_use(Device::cpu).peak - before < 1'000'000);
}

TEST_CASE("ssd: gradients, every option in both values") {
  for (int option = 0; option < 64; ++option) {
    const Case c{.batch = 1, .time = 7, .heads = 2, .width = 2, .groups = option & 1 ? 2 : 1, .state = 3,
                 .z = (option & 2) != 0, .D = (option & 12) != 0, .D_per_channel = (option & 8) != 0,
                 .bias = (option & 4) != 0, .initial = (option & 16) != 0, .softplus = (option & 32) == 0,
                 .dt_scale = 0.5};
    const Tensor document = option & 8 ? documents(1, 7, {2, 5}) : Tensor();
    INFO("option " << option);
    check_gradients_of(c, document, option & 4 ? 3 : 0);
  }
}

TEST_CASE("ssd: gradients at odd sizes and with clamped time steps") {
  check_gradients_of({.batch = 2, .time = 1, .heads = 1, .width = 1, .groups = 1, .state = 1, .initial = true}, {}, 0);
  check_gradients_of(
      {.batch = 2, .time = 13, .heads = 6, .width = 5, .groups = 3, .state = 7, .z = true, .initial = true},
      documents(2, 13, {1, 4, 8}), 5);
  check_gradients_of({.batch = 1, .time = 65, .heads = 2, .width = 3, .groups = 1, .state = 2}, {}, 0);
  check_gradients_of(
      {.batch = 1, .time = 9, .heads = 3, .width = 2, .groups = 1, .state = 2, .dt_mean = 0, .dt_scale = 2}, {}, 4, 0.3,
      1.5);  // many Δ beyond the limits: no gradient through those
}

TEST_CASE("ssd: the gradient of the decays agrees with the cheaper identity in f64") {
  // da_t summed over a chunk: Σ_{s>=t} (dy_s·y_s - Δ_s ddt_s) + <dS', S'>; only dA sees it here, from the state zero.
  const Case c{.batch = 1, .time = 33, .heads = 1, .width = 3, .groups = 1, .state = 4, .D = false, .bias = false,
               .softplus = false};
  auto t = inputs_of(c);
  t[0] = leaf(t[0]), t[1] = leaf(t[1]), t[2] = leaf(t[2]);
  const auto [y, last] = run(t, {}, 8, false);
  const Tensor dy = random_normal(y.shape(), 5);
  backward({&y, 1}, {&dy, 1});
  // y is linear in x: Σ dy·y = Σ dx·x. And Δ ddt = x·dx + a da, so that Σ Δ ddt - Σ x dx = Σ a da = dA_log.
  At x(t[0]), dx(gradient(t[0])), dt(t[1]), ddt(gradient(t[1])), dyv(dy), yv(y);
  double x_dx = 0, dt_ddt = 0, dy_y = 0;
  for (size_t i = 0; i < x.v.size(); ++i) x_dx += x.v[i] * dx.v[i], dy_y += dyv.v[i] * yv.v[i];
  for (size_t i = 0; i < dt.v.size(); ++i) dt_ddt += dt.v[i] * ddt.v[i];
  CHECK(std::abs(dy_y - x_dx) < 1e-11 * std::abs(dy_y));
  CHECK(std::abs(dt_ddt - x_dx - item(gradient(t[2]))) < 1e-11 * std::abs(dt_ddt));
}

TEST_CASE("ssd: any split with carried state equals one run, gradients too") {
  const int64_t time = 21, cut = GENERATE(1, 4, 8, 13, 20);
  const bool packed = GENERATE(false, true);
  const Case c{.batch = 2, .time = time, .heads = 2, .width = 3, .groups = 1, .state = 4, .z = true, .initial = true};
  const Tensor document = packed ? documents(2, time, {3, 9, 14}) : Tensor();
  const Tensor dy = random_normal({2, time, 2, 3}, 50), dlast = random_normal({2, 2, 3, 4}, 51);
  std::vector<Tensor> whole = inputs_of(c), parts = whole;
  for (Tensor& t : whole) t = leaf(t);
  {
    const auto outputs = run(whole, document, 8);
    backward(outputs, std::array{dy, dlast});
  }
  std::array<Tensor, 9> shared;  // gradients of what tokens share: sums over the rows and parts
  const auto add = [](Tensor& sum, const Tensor& t) { sum = sum ? apply(Add{.a = sum, .b = t}) : clone(t); };
  // Rows are cut along time: the batch is taken row by row.
  for (const int64_t b : {0, 1}) {
    const auto rows = [&](const Tensor& t, int64_t begin, int64_t end) {
      return t.slice_first(b, b + 1).reshape(t.shape().axes(1, t.rank())).slice_first(begin, end);
    };
    const auto batched = [](const Tensor& t) {
      Shape s{1};
      for (int i = 0; i < t.rank(); ++i) s = s.plus(t.size(i));
      return t.reshape(s);
    };
    std::vector<Tensor> first, second;
    for (size_t i = 0; i < 9; ++i) {
      const bool timed = i == 0 || i == 1 || i == 3 || i == 4 || i == 6;
      const Tensor state = i == 8 ? parts[8].slice_first(b, b + 1) : parts[i];
      first.push_back(leaf(timed ? batched(rows(parts[i], 0, cut)) : state));
      second.push_back(timed ? leaf(batched(rows(parts[i], cut, time))) : i == 8 ? Tensor() : first[i]);
    }
    const auto document_rows = [&](int64_t begin, int64_t end) {
      return document ? batched(rows(document, begin, end)) : Tensor();
    };
    const bool boundary =
        document && document.data<int32_t>()[b * time + cut] != document.data<int32_t>()[b * time + cut - 1];
    const auto [y1, carried] = run(first, document_rows(0, cut), 8);
    if (!boundary) second[8] = carried;  // a new document starts from nothing
    const auto [y2, last] = run(second, document_rows(cut, time), 8);
    backward(std::array{y1, y2, last},
             std::array{batched(rows(dy, 0, cut)), batched(rows(dy, cut, time)), dlast.slice_first(b, b + 1)});
    for (size_t i : {0, 1, 3, 4, 6}) {
      CHECK(relative_rms(gradient(first[i]), batched(rows(gradient(whole[i]), 0, cut))) < rounding);
      CHECK(relative_rms(gradient(second[i]), batched(rows(gradient(whole[i]), cut, time))) < rounding);
    }
    CHECK(relative_rms(gradient(first[8]), gradient(whole[8]).slice_first(b, b + 1)) < rounding);
    for (size_t i : {2, 5, 7}) add(shared[i], gradient(first[i]));
  }
  for (size_t i : {2, 5, 7}) CHECK(relative_rms(shared[i], gradient(whole[i])) < rounding);
}

TEST_CASE("ssd: packed documents equal separate ones, and NaN stays in its own") {
  const int64_t time = 40, bounds[] = {0, 1, 17, 18, 40};
  const Case c{.batch = 1, .time = time, .heads = 2, .width = 3, .groups = 1, .state = 4};
  auto t = inputs_of(c);
  const Tensor document = documents(1, time, {1, 17, 18});
  const auto [y, last] = run(t, document, 16);
  const bool poison = GENERATE(false, true);
  if (poison) {
    t[0] = clone(t[0]);
    t[0].data<double>()[9 * 2 * 3] = std::numeric_limits<double>::quiet_NaN();  // token 9, in the second document
  }
  for (Tensor& x : t)
    if (x) x = leaf(x);
  const auto [y_p, last_p] = run(t, document, 16);
  const Tensor dy = random_normal(y.shape(), 3);
  backward({&y_p, 1}, {&dy, 1});
  std::vector<Tensor> shared = {t[2].detach(), t[5].detach(), t[7].detach()};  // one leaf for all documents
  for (Tensor& x : shared) x = leaf(x);
  for (int d = 0; d < 4; ++d) {
    const int64_t begin = bounds[d], end = bounds[d + 1];
    std::vector<Tensor> alone;
    for (size_t i = 0; i < 9; ++i) {
      const Tensor x = t[i].defined() ? t[i].detach() : t[i];
      const bool timed = i == 0 || i == 1 || i == 3 || i == 4;
      const auto tokens = [&] { return x.reshape(x.shape().axes(1, x.rank())).slice_first(begin, end); };
      alone.push_back(timed ? leaf(tokens().reshape(x.shape().with(1, end - begin))) : x);
      if (i == 2 || i == 5 || i == 7) alone.back() = shared[i / 3];
    }
    const auto rows = [&](const Tensor& x) {
      return x.reshape(x.shape().axes(1, x.rank())).slice_first(begin, end).reshape(x.shape().with(1, end - begin));
    };
    if (poison && d == 1) {
      CHECK(std::isnan(to_host(rows(y_p))[static_cast<size_t>((9 - begin) * 6)]));
      continue;
    }
    const auto [y_alone, last_alone] = run(alone, {}, 16);
    const Tensor dy_alone = rows(dy);
    backward({&y_alone, 1}, {&dy_alone, 1});
    CHECK(relative_rms(rows(y_p), y_alone) < rounding);
    for (size_t i : {0, 1, 3, 4}) CHECK(relative_rms(rows(gradient(t[i])), gradient(alone[i])) < rounding);
    if (d == 3) CHECK(relative_rms(last_p, last_alone) < rounding);
  }
  for (size_t i : {2, 5, 7})
    if (!poison) CHECK(relative_rms(gradient(shared[i / 3]), gradient(t[i])) < rounding);
}

TEST_CASE("ssd: the step kernel equals forward at every position") {
  const Case c{.batch = 2, .time = 9, .heads = 4, .width = 3, .groups = 2, .state = 5, .z = true, .D_per_channel = true,
               .initial = true};
  const auto t = inputs_of(c);
  const auto [y, last] = run(t, {}, 4);
  Tensor state = clone(t[8]);
  At all(y);
  for (int64_t i = 0; i < c.time; ++i) {
    const auto token = [&](const Tensor& x) {  // [batch, 1 token, ...] -> [batch, ...]
      const int64_t n = x.shape().count(2, x.rank());
      Shape s{x.size(0)};
      for (int k = 2; k < x.rank(); ++k) s = s.plus(x.size(k));
      return clone(x.reshape({x.size(0), x.size(1) * n}).slice_last(i * n, (i + 1) * n)).reshape(s);
    };
    const Tensor one = ssd_step({.x = token(t[0]), .dt = token(t[1]), .A_log = t[2], .B = token(t[3]), .C = token(t[4]),
                                 .D = t[5], .z = token(t[6]), .dt_bias = t[7], .state = state});
    CHECK(relative_rms(one, token(y)) < rounding);
  }
  CHECK(relative_rms(state, last) < rounding);
}

TEST_CASE("ssd: views of one wide matrix give what copies give, f32 is near f64") {
  const Case c{.batch = 2, .time = 70, .heads = 4, .width = 3, .groups = 2, .state = 5, .z = true};
  auto t = inputs_of(c);
  const auto [y, last] = run(t, {}, 0);
  std::vector<Tensor> single;
  for (const Tensor& x : t) single.push_back(x ? to(x, DType::f32) : x);
  CHECK(relative_rms(run(single, {}, 0)[0], y) < 1e-6);  // a few f32 roundings of 6e-8 each
  const Tensor wide = random_normal({2, 70, 12 + 12 + 10 + 10 + 4}, 77);
  const auto part = [&](int64_t begin, int64_t n, const Shape& s) {
    const Tensor v = wide.slice_last(begin, begin + n).reshape(s);
    return v;
  };
  std::vector<Tensor> views = t, copies;
  views[6] = part(0, 12, t[6].shape());
  views[0] = part(12, 12, t[0].shape());
  views[3] = part(24, 10, t[3].shape());
  views[4] = part(34, 10, t[4].shape());
  views[1] = part(44, 4, t[1].shape());
  for (const Tensor& v : views) copies.push_back(v ? clone(v) : v);
  for (std::vector<Tensor>* list : {&views, &copies})
    for (Tensor& v : *list)
      if (v) v = leaf(v);
  const auto from_views = run(views, {}, 0), from_copies = run(copies, {}, 0);
  CHECK(bitwise_equal(from_views[0], from_copies[0]));
  const Tensor dy = random_normal(y.shape(), 3);
  backward({from_views.data(), 1}, {&dy, 1});
  backward({from_copies.data(), 1}, {&dy, 1});
  for (size_t i = 0; i < 8; ++i) CHECK(bitwise_equal(gradient(views[i]), gradient(copies[i])));
}

TEST_CASE("ssd: f32 gradients agree with f64") {
  const Case c{.batch = 2, .time = 200, .heads = 4, .width = 16, .groups = 2, .state = 16, .z = true, .initial = true,
               .dt_mean = -3, .A_mean = 1.5};
  auto t = inputs_of(c);
  std::vector<Tensor> single;
  for (Tensor& x : t) {
    single.push_back(leaf(to(x, DType::f32)));
    x = leaf(to(single.back().detach(), DType::f64));
  }
  const Tensor dy = to(random_normal(t[0].shape(), 9), DType::f32), dy_exact = to(dy, DType::f64);
  const Tensor y = run(t, {}, 0)[0], y_single = run(single, {}, 0)[0];
  backward({&y, 1}, {&dy_exact, 1});
  backward({&y_single, 1}, {&dy, 1});
  for (size_t i = 0; i < 9; ++i) {
    CAPTURE(i);
    // Roundings of 6e-8 in sums of 64; 2e-6 to 4e-6 for A_log and dt_bias, whose terms over the tokens cancel.
    CHECK(relative_rms(gradient(single[i]), gradient(t[i])) < 1e-5);
  }
}

TEST_CASE("ssd: the tape holds the inputs, the states that enter chunks and, with z, the ungated output") {
  const Case c{.batch = 1, .time = 128, .heads = 2, .width = 8, .groups = 1, .state = 4, .z = true};
  auto t = inputs_of(c);
  for (Tensor& x : t)
    if (x) x = leaf(x);
  const int64_t before = memory_use(Device::cpu).in_use;
  const auto [y, last] = run(t, {}, 64);
  const int64_t states = 1 * 2 * 8 * 4 * 8, ungated = 128 * 16 * 8, outputs = 128 * 16 * 8 + 2 * 8 * 4 * 8;
  CHECK(memory_use(Device::cpu).in_use - before == states + ungated + outputs);
}

TEST_CASE("ssd: torn tokens, pitched D and states, one tensor as B and C: gradients are those of copies") {
  const auto g = check_gradients(
      [](std::span<const Tensor> t) {
        const auto D = apply(Split{.x = t[1], .sizes = {3, 2}}), S = apply(Split{.x = t[2], .sizes = {24, 3}});
        const auto x = apply(Split{.x = t[0], .sizes = {3, 3}});  // [batch, time, head, 3 + 3]: heads lie apart
        const auto h = apply(Split{.x = t[3], .sizes = {4}});
        const auto [y, last] = apply(Ssd{.x = x[0], .dt = t[4], .A_log = t[5], .B = h[0], .C = h[0], .D = D[0],
                                         .z = x[1], .dt_bias = {}, .initial_state = S[0].reshape({2, 2, 3, 4}),
                                         .document = {}, .chunk = 3, .final_state = true});
        return std::vector{y, last, D[1], S[1]};
      },
      {random_normal({2, 5, 2, 6}, 1), random_normal({2, 5}, 2), random_normal({2, 27}, 3),
       random_normal({2, 5, 1, 4}, 4), random_normal({2, 5, 2}, 5), random_normal({2}, 6, 0.3)});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("ssd: a NaN decay is seen, and another dtype is refused") {
  auto t = inputs_of({.batch = 1, .time = 5});
  t[2] = full({4}, std::numeric_limits<double>::quiet_NaN(), DType::f64);
  for (double v : to_host(run(t)[0])) CHECK(std::isnan(v));
  t = inputs_of({});
  t[5] = to(t[5], DType::f32);
  CHECK_THROWS_WITH(run(t), ContainsSubstring("x is f64 but [4] is f32"));
}

TEST_CASE("ssd: wrong shapes are named") {
  auto t = inputs_of({});
  t[3] = random_normal({2, 11, 3, 5}, 1);
  CHECK_THROWS_WITH(run(t), Catch::Matchers::Equals("Ssd: 4 heads cannot share 3 groups of B and C"));
  t = inputs_of({});
  t[1] = random_normal({2, 11, 5}, 1);
  CHECK_THROWS_WITH(run(t), Catch::Matchers::Equals("Ssd: x [2, 11, 4, 3] but dt [2, 11, 5]"));
}
