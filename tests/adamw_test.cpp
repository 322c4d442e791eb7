#include "adder/optim/adamw.h"

#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/bf16.h"
#include "adder/core/error.h"
#include "adder/kernels/adamw.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <omp.h>

#include <cmath>
#include <limits>

using namespace adder;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// One number, updated as the paper writes it.
struct Scalar {
  double p, m = 0, v = 0;
  void step(double g, int t, double rate, double decay, const AdamWOptions& o) {
    m = o.beta1 * m + (1 - o.beta1) * g;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(o.beta1, t)), v_hat = v / (1 - std::pow(o.beta2, t));
    p = p - rate * (m_hat / (std::sqrt(v_hat) + o.eps) + decay * p);
  }
};

// Puts a gradient where backward would.
void give(const Tensor& parameter, const Tensor& gradient) { backward({&parameter, 1}, {&gradient, 1}); }

std::vector<Scalar> scalars(const Tensor& t) {
  std::vector<Scalar> result;
  for (const double p : to_host(t)) result.push_back({p});
  return result;
}

double difference(const Tensor& t, const std::vector<Scalar>& expected) {
  const auto values = to_host(t);
  double most = 0;
  for (size_t i = 0; i < values.size(); ++i) most = std::max(most, std::abs(values[i] - expected[i].p));
  return most;
}

struct Model {
  Params params = Params(Device::cpu, {.seed = 1, .dtype = DType::f64});
  Tensor weight = params.create("weight", {7, 3}, init::normal(1));
  Tensor bias = params.create("bias", {5}, init::normal(1), {.decay = false});
  Tensor slow = params.create("slow", {65}, init::normal(1), {.lr_scale = 0.1});
  std::array<Tensor, 3> all() const { return {weight, bias, slow}; }
};

// Where the kernels run: all of AdamW is f32 (or f64 on the CPU), whatever the compute type.
std::vector<Device> devices() {
  if (gpu_count() == 0) return {Device::cpu};
  return {Device::cpu, Device::cuda};
}

Tensor controls(double rate, double clip_factor, double finite, double applied) {
  std::vector<double> c(AdamWControls::size);
  c[AdamWControls::learning_rate] = rate;
  c[AdamWControls::clip_factor] = clip_factor;
  c[AdamWControls::finite] = finite;
  c[AdamWControls::applied] = applied;
  return from_host({AdamWControls::size}, c, DType::f64);
}

AdamWUpdate updated(const AdamWUpdate& u) {
  on(u.parameter.device(), [&](auto backend) { adamw_update(backend, u); });
  return u;
}

// A block of memory, not begun by a range and not ended by one: ranges of one element, within one thread's four, within
// one of the GPU's blocks of 8192, ended by one, across two of them and over several; an empty one; and gaps.
constexpr int64_t block_size = 30'011;

std::vector<AdamWRange> many_ranges() {
  return {{3, 4, 0.1, 1},       {4, 6, 0, 2},         {6, 13, 0.2, 0.5},  {16, 16, 0.1, 1},       {16, 33, 0, 1},
          {40, 8192, 0.1, 0.1}, {8192, 8193, 0.3, 1}, {8255, 9002, 0, 1}, {9002, 27'001, 0.2, 2},
          {30'001, 30'010, 0, 3}};
}

AdamWUpdate block_of(DType type, Device device, double finite, const std::vector<AdamWRange>& ranges) {
  const auto there = [&](const Tensor& t, DType as) { return to_device(to(t, as), device); };
  const auto normal = [&](uint64_t seed) {
    return there(random_normal({block_size}, seed, 1, 0, DType::f32), type);
  };
  return {.parameter = normal(1),
          .gradient = normal(2),
          .exp_avg = normal(3),
          .exp_avg_sq = there(full({block_size}, 0.5), type),
          .rounded = there(full({block_size}, 7), DType::bf16),
          .controls = to_device(controls(1e-2, 0.5, finite, 10), device),
          .ranges = adamw_ranges(ranges, device)};
}

}  // namespace

TEST_CASE("adamw: twenty steps equal the formula of the paper: decay, lr_scale and clipping") {
  const double clip = GENERATE(0.0, 3.0);
  const AdamWOptions o{.beta1 = 0.8, .beta2 = 0.9, .eps = 1e-3, .weight_decay = 0.2};
  const Model model;
  AdamW optimizer(model.params, o);
  std::array expected{scalars(model.weight), scalars(model.bias), scalars(model.slow)};
  for (int t = 1; t <= 20; ++t) {
    const double rate = 0.1 / t;
    double squares = 0;
    std::array<std::vector<double>, 3> gradients;
    for (size_t k = 0; k < 3; ++k) {
      const Tensor p = model.all()[k];
      const Tensor g = random_normal(p.shape(), static_cast<uint64_t>(t) * 10 + k, 0.4);
      gradients[k] = to_host(g);
      for (const double x : gradients[k]) squares += x * x;
      give(p, g);
    }
    const double norm = std::sqrt(squares), factor = clip > 0 && norm > clip ? clip / norm : 1;
    for (size_t k = 0; k < 3; ++k)
      for (size_t i = 0; i < expected[k].size(); ++i)
        expected[k][i].step(factor * gradients[k][i], t, k == 2 ? 0.1 * rate : rate, k == 1 ? 0 : 0.2, o);
    CHECK(item(optimizer.step(rate, {.clip = clip})) == Approx(norm).epsilon(1e-14));
  }
  for (size_t k = 0; k < 3; ++k) CHECK(difference(model.all()[k], expected[k]) < 1e-14);  // 20 roundings
  CHECK(optimizer.counts().applied == 20);
}

TEST_CASE("adamw: a gradient that is not finite changes nothing and is counted") {
  const double bad = GENERATE(values({not_a_number, infinity, -infinity}));
  const Model model;
  AdamW optimizer(model.params);
  const auto state = [&] {
    std::vector<Tensor> s;
    for (const Tensor& t : model.all()) s.push_back(clone(t));
    for (const auto& m : optimizer.moments()) s.insert(s.end(), {clone(m.exp_avg), clone(m.exp_avg_sq)});
    return s;
  };
  for (const Tensor& p : model.all()) give(p, random_normal(p.shape(), 3));
  optimizer.step(0.1);
  const auto before = state();
  for (int i = 1; i <= 2; ++i) {
    give(model.weight, full({7, 3}, 1, DType::f64));
    give(model.slow, full({65}, bad, DType::f64));
    CHECK_FALSE(std::isfinite(item(optimizer.step(0.1))));
    CHECK(optimizer.skipped_in_a_row() == i);
  }
  const auto after = state();
  for (size_t i = 0; i < before.size(); ++i) CHECK(bitwise_equal(before[i], after[i]));
  give(model.weight, full({7, 3}, 1, DType::f64));
  CHECK(item(optimizer.step(0.1)) == Approx(std::sqrt(21.0)));
  CHECK(optimizer.counts().applied == 2);
  CHECK(optimizer.counts().skipped == 2);
  CHECK(optimizer.skipped_in_a_row() == 0);
}

TEST_CASE("adamw: gradients are cleared by a step, and a parameter that got none has a zero gradient") {
  const Model model;
  AdamW optimizer(model.params, {.weight_decay = 0});
  give(model.weight, full({7, 3}, 2, DType::f64));
  give(model.weight, full({7, 3}, 1, DType::f64));
  CHECK(item(optimizer.step(0.1, {.clip = 0})) == Approx(3 * std::sqrt(21.0)));
  const Tensor bias = clone(model.bias), weight = clone(model.weight);
  CHECK_FALSE(gradient(model.weight).defined());
  CHECK(item(optimizer.step(0.1)) == 0);
  CHECK(bitwise_equal(model.bias, bias));
  CHECK(max_difference(model.weight, weight) > 0.01);  // the first moment is not zero yet
}

TEST_CASE("adamw: moments and counts restored in a second optimizer continue bit for bit") {
  const Model a, b;
  AdamW first(a.params), second(b.params);
  const auto step = [](const Model& model, AdamW& optimizer, uint64_t seed) {
    for (const Tensor& p : model.all()) give(p, random_normal(p.shape(), seed));
    optimizer.step(0.05);
  };
  step(a, first, 1);
  step(a, first, 2);
  for (size_t k = 0; k < 3; ++k) {
    copy(a.all()[k], b.all()[k]);
    CHECK(first.moments()[k].name == a.params.all()[k].name);
    CHECK(first.moments()[k].exp_avg.shape() == a.params.all()[k].value.shape());
    copy(first.moments()[k].exp_avg, second.moments()[k].exp_avg);
    copy(first.moments()[k].exp_avg_sq, second.moments()[k].exp_avg_sq);
  }
  second.restore(first.counts());
  step(a, first, 3);
  step(b, second, 3);
  for (size_t k = 0; k < 3; ++k) CHECK(bitwise_equal(a.all()[k], b.all()[k]));
  CHECK(second.counts().applied == 3);
}

TEST_CASE("adamw: parts of a packed parameter keep their own decay") {
  Params params(Device::cpu, {.seed = 1, .dtype = DType::f64});
  const Init one = init::constant(1);
  const Tensor packed =
      params.create_packed("in_proj", 2, {{"x", 3, one, {}}, {"dt", 1, one, {.decay = false}}, {"z", 2, one, {}}});
  AdamW optimizer(params, {.weight_decay = 0.5});
  optimizer.step(0.1);
  CHECK(to_host(packed) == std::vector<double>{.95, .95, .95, .95, .95, .95, 1, 1, .95, .95, .95, .95});
  CHECK(optimizer.moments().size() == 3);
}

TEST_CASE("adamw: in a bf16 run a step leaves every rounded copy the rounded master") {
  Params f32(Device::cpu), params(Device::cpu, {.compute = DType::bf16});
  for (Params* p : {&f32, &params}) {
    p->create("norm", {5}, init::normal(1), {.decay = false});
    const Tensor w = p->create("weight", {67, 3}, init::normal(1), {.product = true});
    AdamW optimizer(*p);
    const Tensor g = to(to(random_normal({67, 3}, 4), DType::bf16), w.dtype());
    for (int i = 0; i < 3; ++i) {
      give(w, g);
      optimizer.step(0.1);
    }
    if (p == &params) CHECK(max_difference(w.detach(), to(params.master(w), DType::bf16)) == 0);
  }
  CHECK(bitwise_equal(params.blocks()[0].values, f32.blocks()[0].values));
  CHECK(bitwise_equal(params.blocks()[0].rounded, to(params.blocks()[0].values, DType::bf16)));
}

TEST_CASE("adamw: parameters made after the optimizer, and options out of range, are refused") {
  Model model;
  AdamW optimizer(model.params);
  CHECK_THROWS_WITH(optimizer.step(not_a_number), "AdamW: learning rate nan");
  CHECK_THROWS_WITH(optimizer.step(0.1, {.clip = -1}), "AdamW: gradients cannot be clipped to a norm of -1");
  model.params.create("late", {1}, init::constant(0));
  CHECK_THROWS_WITH(optimizer.step(0.1), "AdamW: made for 3 parameters, but now there are 4");
  CHECK_THROWS_AS(AdamW(model.params, {.beta1 = 1}), Error);
  CHECK_THROWS_AS(AdamW(model.params, {.eps = 0}), Error);
  CHECK_THROWS_AS(AdamW(model.params, {.weight_decay = -0.1}), Error);
}

TEST_CASE("adamw: the f32 update follows f64, and the bf16 copy is the rounded parameter", "[gpu][small]") {
  const Device device = GENERATE(from_range(devices()));
  const int64_t n = GENERATE(1, 4096, 4097, 100'003), begin = GENERATE(0, 1, 4);  // where the ranges start
  const double finite = GENERATE(1.0, 0.0);
  const auto make = [&](DType type, Device where) {
    const auto range = [&](const Tensor& t, DType as) {
      return to_device(to(t, as), where).slice_first(begin, begin + n);
    };
    const auto normal = [&](uint64_t seed) { return range(random_normal({begin + n}, seed, 1, 0, DType::f32), type); };
    return AdamWUpdate{.parameter = normal(1),
                       .gradient = normal(2),
                       .exp_avg = normal(3),
                       .exp_avg_sq = range(full({begin + n}, 0.5), type),
                       .rounded = range(full({begin + n}, 7), DType::bf16),
                       .controls = to_device(controls(1e-3, 0.5, finite, 10), where),
                       .ranges = adamw_ranges({{.end = n, .weight_decay = 0.1}}, where)};
  };
  const AdamWUpdate a = updated(make(DType::f32, device)), b = updated(make(DType::f64, Device::cpu));
  CHECK(max_difference(a.parameter, b.parameter) < 5e-7);  // one rounding of numbers below 5
  CHECK(relative_rms(a.exp_avg, b.exp_avg) < 3e-7);        // two or three roundings of 2^-24; one number may cancel
  CHECK(relative_rms(a.exp_avg_sq, b.exp_avg_sq) < 1.5e-7);
  const AdamWUpdate before = make(DType::f32, device);
  CHECK(bitwise_equal(a.rounded, finite != 0 ? to(a.parameter, DType::bf16) : before.rounded));
  CHECK(bitwise_equal(a.parameter, before.parameter) == (finite == 0));
  CHECK(bitwise_equal(a.exp_avg, before.exp_avg) == (finite == 0));
  CHECK(bitwise_equal(a.exp_avg_sq, before.exp_avg_sq) == (finite == 0));
  for (int i = 0; i < 9; ++i) {  // ten runs
    const AdamWUpdate again = updated(make(DType::f32, device));
    CHECK(bitwise_equal(again.parameter, a.parameter));
    CHECK(bitwise_equal(again.exp_avg_sq, a.exp_avg_sq));
  }
}

TEST_CASE("adamw: every range of a block has its own decay and lr_scale, and what lies in none stays", "[gpu][small]") {
  const auto [device, type] = GENERATE(from_range([] {
    std::vector<Place> places{{Device::cpu, DType::f64}};
    for (const Device d : devices()) places.push_back({d, DType::f32});
    return places;
  }()));
  const double finite = GENERATE(1.0, 0.0);
  const AdamWOptions o;  // β and ε are an update's by default
  const AdamWUpdate before = block_of(type, device, finite, many_ranges());
  std::vector<Scalar> expected = scalars(before.parameter);
  const auto g = to_host(before.gradient), m = to_host(before.exp_avg);
  std::vector<bool> touched(block_size);
  for (size_t i = 0; i < expected.size(); ++i) expected[i].m = m[i], expected[i].v = 0.5;
  if (finite != 0)
    for (const AdamWRange& r : many_ranges())
      for (auto i = static_cast<size_t>(r.begin); i < static_cast<size_t>(r.end); ++i) {
        expected[i].step(0.5 * g[i], 10, 1e-2 * r.lr_scale, r.weight_decay, o);
        touched[i] = true;
      }
  const AdamWUpdate u = updated(block_of(type, device, finite, many_ranges()));
  const auto p = to_host(u.parameter), m_new = to_host(u.exp_avg), v_new = to_host(u.exp_avg_sq);
  const auto rounded = to_host(u.rounded), copy = to_host(to(u.parameter, DType::bf16));
  const auto was = to_host(before.parameter);
  const double most = type == DType::f64 ? 0x1p-48 : 0x1p-19;  // eight roundings of numbers below 8
  int64_t wrong = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const Scalar& e = expected[i];
    const bool near = std::abs(p[i] - e.p) < most && std::abs(m_new[i] - e.m) < most &&
                      std::abs(v_new[i] - e.v) < most && rounded[i] == copy[i];
    const bool same = p[i] == was[i] && m_new[i] == m[i] && v_new[i] == 0.5 && rounded[i] == 7;
    wrong += touched[i] ? !near : !same;
  }
  CHECK(wrong == 0);
}

TEST_CASE("adamw: ranges of one update have the bits that each has in an update of its own", "[gpu][small]") {
  const Device device = GENERATE(from_range(devices()));
  const AdamWUpdate together = updated(block_of(DType::f32, device, 1, many_ranges()));
  const AdamWUpdate alone = block_of(DType::f32, device, 1, {});
  for (const AdamWRange& r : many_ranges()) {  // most of these begin where no piece of a vector may
    const auto part = [&](const Tensor& t) { return t.slice_first(r.begin, r.end); };
    updated({.parameter = part(alone.parameter), .gradient = part(alone.gradient), .exp_avg = part(alone.exp_avg),
             .exp_avg_sq = part(alone.exp_avg_sq), .rounded = part(alone.rounded), .controls = alone.controls,
             .ranges = adamw_ranges({{0, r.end - r.begin, r.weight_decay, r.lr_scale}}, device)});
  }
  CHECK(bitwise_equal(together.parameter, alone.parameter));
  CHECK(bitwise_equal(together.exp_avg, alone.exp_avg));
  CHECK(bitwise_equal(together.exp_avg_sq, alone.exp_avg_sq));
  CHECK(bitwise_equal(together.rounded, alone.rounded));
}

TEST_CASE("adamw: five steps on every device, one of them with a bad gradient, follow the CPU in f64", "[gpu][small]") {
  const Device device = GENERATE(from_range(devices()));
  const double bad = GENERATE(values({not_a_number, infinity, -infinity, 1e30}));  // its square is beyond f32
  struct Run {
    std::vector<Tensor> state, norms;
    AdamW::Counts counts;
  };
  const auto run = [&](Device where, DType type) {
    Params params(where, {.seed = 1, .dtype = type});
    const Tensor weight = params.create("weight", {70, 33}, init::normal(1));
    const Tensor bias = params.create("bias", {5}, init::normal(1), {.decay = false});
    AdamW optimizer(params, {.weight_decay = 0.1});
    Run r;
    const auto state = [&] {
      std::vector<Tensor> s{clone(weight), clone(bias)};
      for (const auto& m : optimizer.moments()) s.insert(s.end(), {clone(m.exp_avg), clone(m.exp_avg_sq)});
      return s;
    };
    for (uint64_t t = 1; t <= 5; ++t) {
      const auto before = state();
      const Tensor g = random_normal({70, 33}, t);
      if (t == 3) fill(g.slice_first(69, 70).slice_last(32, 33), bad);
      give(weight, to_device(to(g, type), where));
      give(bias, to_device(to(random_normal({5}, t + 10), type), where));
      r.norms.push_back(to_device(clone(optimizer.step(0.1, {.clip = 1})), Device::cpu));
      if (t == 3 && !std::isfinite(bad))
        for (size_t i = 0; i < before.size(); ++i) CHECK(bitwise_equal(state()[i], before[i]));
    }
    r.state = state();
    r.counts = optimizer.counts();
    return r;
  };
  const Run r = run(device, DType::f32), exact = run(Device::cpu, DType::f64);
  const bool skipped = !std::isfinite(bad);
  CHECK(r.counts.applied == (skipped ? 4 : 5));
  CHECK(r.counts.skipped == skipped);
  CHECK(r.counts.skipped_in_a_row == 0);
  for (size_t t = 0; t < 5; ++t)
    if (skipped && t == 2) CHECK_FALSE(std::isfinite(item(r.norms[t])));
    else CHECK(item(r.norms[t]) == Approx(item(exact.norms[t])).epsilon(1e-7));  // of gradients rounded to f32
  for (size_t i = 0; i < r.state.size(); ++i)
    CHECK(relative_rms(r.state[i], exact.state[i]) < 1e-6);  // inputs rounded to 2^-24, five updates of some roundings
}

TEST_CASE("adamw: the sum of squares is the same for any number of threads, and NaN goes through") {
  const std::vector<Tensor> tensors{random_normal({100'003}, 1, 1, 0, DType::f32), random_normal({2, 3}, 3),
                                    random_normal({17}, 2, 1, 0, DType::f32), Tensor({0}, DType::f32)};
  long double exact = 0;
  for (const Tensor& t : tensors)
    for (const double x : to_host(t)) exact += static_cast<long double>(x) * x;
  const Tensor one({1}, DType::f64), many({1}, DType::f64);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  sum_of_squares(Cpu{}, tensors, one);
  omp_set_num_threads(3);
  sum_of_squares(Cpu{}, tensors, many);
  omp_set_num_threads(threads);
  CHECK(bitwise_equal(one, many));
  CHECK(item(one) == Approx(static_cast<double>(exact)).epsilon(1e-14));
  tensors[0].data<float>()[70'000] = std::numeric_limits<float>::quiet_NaN();
  sum_of_squares(Cpu{}, tensors, one);
  CHECK(std::isnan(item(one)));
  const std::vector large{full({3}, 1e30)};  // whose squares are beyond f32
  sum_of_squares(Cpu{}, large, one);
  CHECK(item(one) == Approx(3e60).epsilon(1e-6));
}

TEST_CASE("adamw: the GPU's sum of squares is the CPU's in f64; ten runs give the same bits", "[gpu][small]") {
  if (no_gpu()) return;
  const std::vector<Tensor> here{random_normal({300'001}, 1, 1, 0, DType::f32), Tensor({0}, DType::f32),
                                 random_normal({2, 3}, 3, 1, 0, DType::f32), full({5}, 1e30).slice_first(1, 4)};
  std::vector<Tensor> there;
  for (const Tensor& t : here) there.push_back(to_device(t, Device::cuda));
  const Tensor expected({1}, DType::f64), first({1}, DType::f64, Device::cuda), again({1}, DType::f64, Device::cuda);
  const auto sum = [&](size_t count, const Tensor& to) {
    on(Device::cuda, [&](auto backend) { sum_of_squares(backend, {there.data(), count}, to); });
    sum_of_squares(Cpu{}, {here.data(), count}, expected);
  };
  sum(4, first);
  CHECK(item(first) == Approx(item(expected)).epsilon(1e-14));  // 3e60, beyond f32
  sum(3, first);
  CHECK(item(first) == Approx(item(expected)).epsilon(1e-14));  // sums of 3e5 f64 numbers of one sign
  for (int i = 0; i < 9; ++i) {
    sum(3, again);
    CHECK(bitwise_equal(again, first));
  }
  sum(0, first);
  CHECK(item(first) == 0);
}

TEST_CASE("adamw: operands that do not fit are named") {
  CHECK_THROWS_WITH(adamw_ranges({{0, 5, 0, 1}, {4, 6, 0, 1}}, Device::cpu),
                    "AdamW: a range 4..6 after one that ends at 5");
  AdamWUpdate beyond = block_of(DType::f32, Device::cpu, 1, {{0, block_size + 1, 0, 1}});
  CHECK_THROWS_WITH(adamw_update(Cpu{}, beyond), "AdamW: 30011 parameters, but a range that ends at 30012");
  const Tensor p = full({3}, 1), g = full({4}, 1);
  const AdamWUpdate u{.parameter = p, .gradient = g, .exp_avg = p, .exp_avg_sq = p, .rounded = {}, .controls = {},
                      .ranges = {}};
  CHECK_THROWS_WITH(adamw_update(Cpu{}, u),
                    "AdamW: parameter f32 [3] but gradient f32 [4], all must be contiguous");
}
