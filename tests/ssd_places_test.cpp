// SSD on every backend, against the CPU's in f64 (which ssd_test.cpp checks against the formula).
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/ssd/ssd.h"
#include "adder/kernels/view.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

using namespace adder;

namespace {

using Size = std::array<int64_t, 2>;  // head_dim, state

struct Case {
  int64_t batch = 2, time = 11, heads = 4, width = 3, groups = 2, state = 5;
  bool z = true, bias = true, initial = true, softplus = true, packed = false;
  int D = 1;  // 0: none, 1: per head, 2: per channel
  int64_t chunk = 0;
  double least = 0, most = std::numeric_limits<double>::infinity();
};

// What flows between layers, and is bf16 at a bf16 place: x, dt, B, C, z.
bool flows(size_t i) { return i == 0 || i == 1 || i == 3 || i == 4 || i == 6; }

double uniform(const Tensor& normal, size_t i) { return 0.5 * std::erfc(-to_host(normal)[i] / std::sqrt(2.0)); }

// As Mamba-2 starts: A uniform in -16..-1, Δ log-uniform in 1e-3..0.1 (dt_bias is its inverse softplus), D near 1.
// Without a bias dt has it. In the order of Ssd::inputs(), then the documents; f32 stays f32 at a bf16 place.
std::vector<Tensor> inputs_of(const Case& c, uint64_t seed = 1) {
  const Shape x{c.batch, c.time, c.heads, c.width}, B{c.batch, c.time, c.groups, c.state}, heads{c.heads};
  const Tensor u = random_normal({2 * c.heads}, seed + 20);
  std::vector<double> A_log, bias;
  for (int64_t h = 0; h < c.heads; ++h) {
    const auto i = static_cast<size_t>(h);
    A_log.push_back(std::log(1 + 15 * uniform(u, i)));
    const double delta = std::exp(std::log(1e-3) + std::log(100) * uniform(u, i + static_cast<size_t>(c.heads)));
    bias.push_back(std::log(std::expm1(delta)));
  }
  const double dt_mean = !c.softplus ? 0.05 : c.bias ? 0 : -4;
  if (!c.softplus)
    for (double& v : bias) v = 0.03;
  const Tensor D = random_normal(c.D == 2 ? Shape{c.heads, c.width} : heads, seed + 5, 0.3, 1);
  Tensor document;
  if (c.packed) {
    document = Tensor({c.batch, c.time}, DType::i32);
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t t = 0, d = 0; t < c.time; ++t) {
        for (const int64_t start : {1, 2, 5, 40, 64, 65, 100, 128, 200, 256, 700}) d += start + b == t;
        document.data<int32_t>()[b * c.time + t] = static_cast<int32_t>(d % 2);  // 0, 1, 0 are three documents
      }
  }
  return {random_normal(x, seed),
          random_normal({c.batch, c.time, c.heads}, seed + 1, c.softplus ? 0.5 : 0.01, dt_mean),
          from_host(heads, A_log),
          random_normal(B, seed + 3),
          random_normal(B, seed + 4),
          c.D ? to(D, DType::f32) : Tensor(),
          c.z ? random_normal(x, seed + 6) : Tensor(),
          c.bias ? from_host(heads, bias) : Tensor(),
          c.initial ? random_normal({c.batch, c.heads, c.width, c.state}, seed + 8, 1, 0, DType::f32) : Tensor(),
          document};
}

std::vector<Tensor> outputs_of(const Case& c, std::span<const Tensor> t) {
  const auto [y, last] = apply(Ssd{.x = t[0], .dt = t[1], .A_log = t[2], .B = t[3], .C = t[4], .D = t[5], .z = t[6],
                                   .dt_bias = t[7], .initial_state = t[8], .document = t[9], .softplus = c.softplus,
                                   .dt_min = c.least, .dt_max = c.most, .chunk = c.chunk, .final_state = true});
  return {y, last};
}

// f32: sums of thousands of products that nearly cancel in the gradient of A_log; the others stay below a tenth of it.
// bf16: places.h.
constexpr double rounding = 5e-5;

void check_case(const Place& place, const Case& c) {
  INFO("[" << c.batch << ", " << c.time << ", " << c.heads << ", " << c.width << "], state " << c.state);
  check_at(place, [&](std::span<const Tensor> t) { return outputs_of(c, t); }, inputs_of(c), rounding);
}

// At a place from inputs rounded to its dtype: y, the final state and the nine gradients, on the host.
std::vector<Tensor> run(const Place& place, const Case& c, const std::vector<Tensor>& inputs, const Tensor& dy,
                        const Tensor& dlast) {
  std::vector<Tensor> t;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const DType type = i == 9 ? DType::i32 : place.type == DType::bf16 && !flows(i) ? DType::f32 : place.type;
    const Tensor x = inputs[i] ? to_device(to(inputs[i], type), place.device) : Tensor();
    t.push_back(x && i < 9 ? leaf(x) : x);
  }
  const auto outputs = outputs_of(c, t);
  const auto like = [&](const Tensor& d, const Tensor& y) {
    return d ? to_device(to(d, y.dtype()), place.device) : Tensor();
  };
  backward(outputs, std::array{like(dy, outputs[0]), like(dlast, outputs[1])});
  std::vector<Tensor> result;
  for (const Tensor& y : outputs) result.push_back(to_device(y.detach(), Device::cpu));
  for (size_t i = 0; i < 9; ++i) result.push_back(t[i] ? to_device(gradient(t[i]), Device::cpu) : Tensor());
  return result;
}

// Batch rows [b, b_end) and tokens [t, t_end) of a tensor [batch, time, ...]; all tokens if t_end is 0.
Tensor part(const Tensor& x, int64_t b, int64_t b_end, int64_t t = 0, int64_t t_end = 0) {
  if (!x) return x;
  if (t_end == 0) return x.slice_first(b, b_end);
  const int64_t time = x.size(1), run = x.shape().count(2, x.rank());
  const Tensor rows = contiguous(x).reshape({x.size(0), time * run}).slice_first(b, b_end);
  return contiguous(rows.slice_last(t * run, t_end * run)).reshape(x.shape().with(0, b_end - b).with(1, t_end - t));
}
// Tokens [t, t_end) of all that has them.
std::vector<Tensor> tokens_of(const std::vector<Tensor>& inputs, int64_t t, int64_t t_end) {
  std::vector<Tensor> result;
  for (size_t i = 0; i < inputs.size(); ++i)
    result.push_back(inputs[i] && (flows(i) || i == 9) ? part(inputs[i], 0, inputs[i].size(0), t, t_end) : inputs[i]);
  return result;
}

// What came of two ways of computing one thing: apart by rounding.
double allowed(const Place& place) { return place.type == DType::bf16 ? 5e-3 : rounding; }

Tensor dy_of(const Case& c) { return random_normal({c.batch, c.time, c.heads, c.width}, 50); }
Tensor dlast_of(const Case& c) { return random_normal({c.batch, c.heads, c.width, c.state}, 51); }

}  // namespace

TEST_CASE("ssd places: every option at small sizes", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  for (int option = 0; option < 32; ++option)
    check_case(place, {.time = 9, .heads = 4, .width = option % 5 + 1, .groups = option & 1 ? 2 : 1,
                       .state = option % 7 + 1, .z = (option & 2) != 0, .bias = (option & 4) != 0,
                       .initial = (option & 8) != 0, .softplus = (option & 16) == 0, .packed = option % 3 == 1,
                       .D = option % 3, .chunk = option & 2 ? 4 : 0});
  check_case(place, {.batch = 1, .time = 1, .heads = 1, .width = 1, .groups = 1, .state = 1, .z = false,
                     .initial = false});
  check_case(place, {.time = 65, .heads = 2, .width = 64, .groups = 1, .state = 64, .packed = true, .chunk = 32});
  check_case(place, {.batch = 1, .time = 19, .heads = 2, .width = 33, .groups = 1, .state = 130, .D = 2, .chunk = 8});
}

TEST_CASE("ssd places: any length", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t time = GENERATE(1, 2, 63, 64, 65, 257, 1000);
  const bool packed = GENERATE(false, true);
  check_case(place, {.time = time, .heads = 6, .width = 7, .groups = 3, .state = 17, .packed = packed, .D = 2});
  check_case(place, {.batch = 1, .time = time, .heads = 4, .width = 64, .groups = 2, .state = 64, .packed = packed});
  check_case(place, {.batch = 2, .time = time, .heads = 2, .width = 64, .groups = 1, .state = 128, .z = false,
                     .initial = false, .packed = packed});
}

TEST_CASE("ssd places: many heads in one block, and sizes between tiles", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  check_case(place, {.batch = 8, .time = 1000, .heads = 80, .width = 8, .groups = 1, .state = 8, .packed = true});
  check_case(place, {.time = 130, .heads = 12, .width = 24, .groups = 12, .state = 72, .packed = true, .D = 2});
  // Long memories of inputs that are not centred.
  Case c{.batch = 1, .time = 600, .heads = 6, .width = 64, .groups = 1, .state = 128, .z = false, .initial = false};
  auto t = inputs_of(c);
  for (const size_t i : {0, 3, 4}) t[i] = random_normal(t[i].shape(), 40 + i, 1, 0.5);
  t[2] = zeros({c.heads}, DType::f32);  // A -1
  t[7] = full({c.heads}, std::log(std::expm1(1.5e-3)), DType::f32);
  const auto f = [&](std::span<const Tensor> s) {
    return outputs_of(c, std::vector{s[0], s[1], s[2], s[3], s[4], s[5], Tensor(), s[6], Tensor(), Tensor()});
  };
  check_at(place, f, {t[0], t[1], t[2], t[3], t[4], t[5], t[7]}, rounding);
}

TEST_CASE("ssd places: documents do not reach each other's time steps", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const Case c{.batch = 1, .time = 60, .heads = 2, .width = 64, .groups = 1, .state = 64, .z = false, .initial = false,
               .packed = true};
  const auto t = inputs_of(c);
  const Tensor dy = dy_of(c), loud = clone(dy);  // the document of tokens 40 to 59
  const Tensor rows = loud.reshape({c.time, 128});
  copy(apply(Scale{.x = rows.slice_first(40, 60), .factor = 0x1p20}), rows.slice_first(40, 60));
  const auto quiet = run(place, c, t, dy, {}), other = run(place, c, t, loud, {});
  for (const size_t k : {2, 3, 5, 6})
    CHECK(bitwise_equal(part(quiet[k], 0, 1, 0, 40), part(other[k], 0, 1, 0, 40)));
}

TEST_CASE("ssd places: any head_dim and state", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(1, 31, 64, 128, 257), state = GENERATE(1, 16, 61, 128, 256, 300);
  check_case(place, {.batch = 1, .time = 70, .heads = 2, .width = width, .groups = 1, .state = state, .packed = true,
                     .chunk = 32});
}

TEST_CASE("ssd places: the sizes of a model, as it starts", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t groups = GENERATE(1, 2), state = GENERATE(64, 128);
  check_case(place, {.time = 512, .heads = 8, .width = 64, .groups = groups, .state = state, .z = false,
                     .initial = false});
}

TEST_CASE("ssd places: time steps beyond their limits have no gradient", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const Case c{.time = 40, .heads = 2, .width = 64, .groups = 1, .state = 64, .least = 0.02, .most = 0.05};
  check_case(place, c);
  const auto result = run(place, c, inputs_of(c), dy_of(c), {});
  size_t zeros = 0;
  for (const double v : to_host(result[3])) zeros += v == 0;
  CHECK(zeros > 40);  // of 160; Δ is log-uniform in 1e-3..0.1
}

TEST_CASE("ssd places: slices of one buffer, and the last state unused", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(3, 64), state = GENERATE(5, 64), odd = GENERATE(0, 3);
  const Case c{.time = 35, .heads = 2, .width = width, .groups = 1, .state = state, .initial = false};
  const int64_t inner = c.heads * c.width;
  const auto f = [&](std::span<const Tensor> t) {
    auto p = apply(Split{.x = t[0], .sizes = {odd + 1, inner, inner, c.state, c.state, c.heads}});
    const Shape x{c.batch, c.time, c.heads, c.width}, B{c.batch, c.time, c.groups, c.state};
    const std::vector<Tensor> s = {p[2].reshape(x), p[5], t[1], p[3].reshape(B), p[4].reshape(B), t[2],
                                   p[1].reshape(x), t[3], Tensor(), Tensor()};
    return std::vector{outputs_of(c, s)[0], p[0]};
  };
  const auto t = inputs_of(c);
  const int64_t all = odd + 1 + 2 * inner + 2 * c.state + c.heads;
  check_at(place, f, {random_normal({c.batch, c.time, all}, 1, 0.7), t[2], t[5], t[7]}, rounding);
}

TEST_CASE("ssd places: extreme decays and time steps are finite and near", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const auto size = GENERATE(Size{3, 5}, Size{64, 64}, Size{64, 128});
  const bool z = GENERATE(false, true);
  const Case c{.batch = 1, .time = 130, .heads = 2, .width = size[0], .groups = 1, .state = size[1], .z = z};
  auto t = inputs_of(c);
  const auto set = [&](size_t i, double value) { t[i] = full({2}, value); };
  SECTION("A -200") { set(2, std::log(200)); }
  SECTION("A -1e-4") { set(2, std::log(1e-4)); }
  SECTION("dt_bias +10") { set(7, 10); }
  SECTION("dt_bias -20") { set(7, -20); }
  SECTION("Δ of 10 and 1e-3 mixed, A -16") {
    auto dt = to_host(t[1]);
    for (size_t i = 0; i < dt.size(); ++i) dt[i] = i % 7 == 3 ? 10 : -6.9;
    t[1] = from_host(t[1].shape(), dt, DType::f64);
    set(2, std::log(16));
    set(7, 0);
  }
  std::vector<Tensor> rounded;
  for (size_t i = 0; i < t.size(); ++i)
    rounded.push_back(flows(i) && t[i] ? to(to(t[i], place.type), DType::f64) : t[i]);
  const Tensor dy = to(to(dy_of(c), place.type), DType::f64), dlast = to(dlast_of(c), DType::f32);
  const auto got = run(place, c, rounded, dy, dlast), exact = run({Device::cpu, DType::f64}, c, rounded, dy, dlast);
  const auto most = [&](size_t i) { return max_difference(exact[i], zeros(exact[i].shape(), DType::f64)); };
  for (size_t i = 0; i < got.size(); ++i) {
    if (!got[i]) continue;
    // dt, A_log and dt_bias are of one kind: all are parts of the same sum, of which A_log's may be next to nothing.
    const double largest = i == 3 || i == 4 || i == 9 ? std::max({most(3), most(4), most(9)}) : most(i);
    INFO(name(place) << ", output or gradient " << i << ", at most " << largest);
    // bf16: up to two roundings of 2e-3 on the way from an operand to a result, and with z, as if the gate were an
    // operator of its own, those of y and dy, which add up over the tokens in the gradient of dt_bias. f32: a decay
    // e^{-40} has an error of 40 roundings, and sums cancel.
    CHECK(max_difference(got[i], exact[i]) <= (place.type == DType::f32 ? 1e-4 : z ? 1.5e-2 : 5e-3) * largest);
  }
}

TEST_CASE("ssd places: NaN stays in its batch row and in its document", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(3, 64), where = GENERATE(0, 1, 3, 4, 6);
  const Case c{.time = 70, .heads = 2, .width = width, .groups = 1, .state = 64, .packed = true};
  const bool chunked = place.type == DType::bf16 && width == 64;  // documents of one chunk share products there
  const auto clean = inputs_of(c);
  auto t = clean;
  const auto i = static_cast<size_t>(where);
  t[i] = clone(t[i]);
  const int64_t run_length = t[i].shape().count(2, t[i].rank());
  const int64_t token = c.time + 50;  // row 1, in the document of tokens 41..64
  t[i].data<double>()[token * run_length] = std::numeric_limits<double>::quiet_NaN();
  const auto expected = run(place, c, clean, dy_of(c), dlast_of(c)), got = run(place, c, t, dy_of(c), dlast_of(c));
  CHECK(std::isnan(to_host(part(got[0], 1, 2, 50, 51))[0]));
  for (const size_t k : {0, 2, 3, 5, 6, 8}) {  // y and the gradients of x, dt, B, C, z
    INFO(name(place) << ", NaN in input " << where << ", output or gradient " << k);
    CHECK(bitwise_equal(part(got[k], 0, 1, 0, 70), part(expected[k], 0, 1, 0, 70)));
    if (!chunked) CHECK(relative_rms(part(got[k], 1, 2, 0, 41), part(expected[k], 1, 2, 0, 41)) < allowed(place));
    // In chunks the token 64 brings the NaN into the next one, and only from x is it kept from the document after it.
    if (!chunked || where == 0)
      CHECK(relative_rms(part(got[k], 1, 2, 65, 70), part(expected[k], 1, 2, 65, 70)) < allowed(place));
  }
  for (const size_t k : {1, 10}) CHECK(bitwise_equal(part(got[k], 0, 1), part(expected[k], 0, 1)));
  CHECK(relative_rms(got[1], expected[1]) < allowed(place));
}

TEST_CASE("ssd places: a run split in two with the state carried is one run", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t cut = GENERATE(1, 64, 77, 129), width = GENERATE(5, 64);
  const bool packed = GENERATE(false, true);
  const Case c{.time = 130, .heads = 2, .width = width, .groups = 1, .state = 64, .packed = packed};
  const auto t = inputs_of(c);
  const Tensor dy = dy_of(c), dlast = dlast_of(c);
  const auto whole = run(place, c, t, dy, dlast);
  Case first = c, second = c;
  first.time = cut;
  second.time = c.time - cut;
  const auto head = tokens_of(t, 0, cut);
  auto tail = tokens_of(t, cut, c.time);
  const Tensor none = zeros(dlast.shape());
  tail[8] = run(place, first, head, part(dy, 0, 2, 0, cut), none)[1];
  const auto cut_off = [&](const Tensor& state) {  // a new document starts from nothing
    for (int64_t b = 0; packed && b < 2; ++b)
      if (item(part(t[9], b, b + 1, cut, cut + 1)) != item(part(t[9], b, b + 1, cut - 1, cut)))
        fill(part(state, b, b + 1), 0);
  };
  cut_off(tail[8]);
  const auto later = run(place, second, tail, part(dy, 0, 2, cut, c.time), dlast);
  const Tensor back = clone(later[10]);
  cut_off(back);
  const auto earlier = run(place, first, head, part(dy, 0, 2, 0, cut), back);
  for (const size_t k : {0, 2, 3, 5, 6, 8}) {
    INFO(name(place) << ", cut at " << cut << ", output or gradient " << k);
    CHECK(relative_rms(earlier[k], part(whole[k], 0, 2, 0, cut)) < allowed(place));
    CHECK(relative_rms(later[k], part(whole[k], 0, 2, cut, c.time)) < allowed(place));
  }
  CHECK(relative_rms(later[1], whole[1]) < allowed(place));
  CHECK(relative_rms(earlier[10], whole[10]) < allowed(place));
}

TEST_CASE("ssd places: packed documents are separate ones", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(5, 64), state = GENERATE(64, 128);
  const Case c{.batch = 1, .time = 210, .heads = 2, .width = width, .groups = 1, .state = state, .initial = false,
               .packed = true};
  const auto t = inputs_of(c);
  const auto packed = run(place, c, t, dy_of(c), {});
  const std::array<int64_t, 11> bounds = {0, 1, 2, 5, 40, 64, 65, 100, 128, 200, 210};
  for (size_t d = 0; d + 1 < bounds.size(); ++d) {
    Case alone = c;
    alone.time = bounds[d + 1] - bounds[d];
    auto own = tokens_of(t, bounds[d], bounds[d + 1]);
    own[9] = {};
    const auto separate = run(place, alone, own, part(dy_of(c), 0, 1, bounds[d], bounds[d + 1]), {});
    INFO(name(place) << ", document " << d);
    for (const size_t k : {0, 2, 3, 5, 6, 8})
      CHECK(relative_rms(part(packed[k], 0, 1, bounds[d], bounds[d + 1]), separate[k]) < allowed(place));
    if (d + 2 == bounds.size()) CHECK(relative_rms(packed[1], separate[1]) < allowed(place));
  }
}

TEST_CASE("ssd places: ten runs give the same bits", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const Case c{.time = 150, .heads = 8, .width = 64, .groups = 2, .state = 128, .packed = true};
  const auto t = inputs_of(c);
  const auto once = run(place, c, t, dy_of(c), dlast_of(c));
  for (int i = 1; i < 10; ++i) {
    const auto again = run(place, c, t, dy_of(c), dlast_of(c));
    for (size_t k = 0; k < once.size(); ++k) CHECK(bitwise_equal(once[k], again[k]));
  }
}

TEST_CASE("ssd places: the decoding step is forward at every position", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const auto size = GENERATE(Size{3, 5}, Size{64, 64}, Size{65, 128});
  const bool options = GENERATE(false, true);
  const Case c{.time = 17, .heads = 4, .width = size[0], .groups = 2, .state = size[1], .z = options, .bias = options,
               .softplus = options, .D = options ? 2 : 0};
  const auto t = inputs_of(c);
  std::vector<Tensor> at;
  for (size_t i = 0; i < 9; ++i) {
    const DType type = place.type == DType::bf16 && !flows(i) ? DType::f32 : place.type;
    at.push_back(t[i] ? to_device(to(t[i], type), place.device) : Tensor());
  }
  at.push_back({});
  const auto outputs = outputs_of(c, at);
  const Tensor y = to_device(outputs[0], Device::cpu), state = clone(at[8]);
  for (int64_t i = 0; i < c.time; ++i) {
    const auto token = [&](size_t k) -> Tensor {  // rows apart, as slices of a buffer are
      if (!at[k]) return {};
      const Tensor x = part(to_device(at[k], Device::cpu), 0, 2, i, i + 1);
      const int64_t run_length = x.count() / 2;
      const Tensor view = full({2, run_length + 3}, 7, x.dtype(), place.device).slice_last(1, 1 + run_length);
      copy(x.reshape({2, run_length}), view);
      return view.reshape(x.rank() == 3 ? Shape{2, x.size(2)} : Shape{2, x.size(2), x.size(3)});
    };
    const Tensor step = ssd_step({.x = token(0), .dt = token(1), .A_log = at[2], .B = token(3), .C = token(4),
                                  .D = at[5], .z = token(6), .dt_bias = at[7], .state = state,
                                  .softplus = c.softplus});
    INFO(name(place) << ", position " << i);
    CHECK(relative_rms(step, part(y, 0, 2, i, i + 1).reshape(step.shape())) < allowed(place));
  }
  CHECK(relative_rms(state, outputs[1]) < allowed(place));
}

// On the GPU many sequences have another kernel; widths that are not a multiple of its rows, states in fours and not.
TEST_CASE("ssd places: a step of many sequences moves each on as a step of few does", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t state_size = GENERATE(20, 7);
  constexpr int64_t batch = 130, few = 3, heads = 8, width = 35, groups = 2;
  const auto at_place = [&](const Shape& shape, uint64_t seed, DType type) {
    return to_device(to(random_normal(shape, seed), type), place.device);
  };
  const Tensor x = at_place({batch, heads, width}, 1, place.type), dt = at_place({batch, heads}, 2, place.type);
  const Tensor B = at_place({batch, groups, state_size}, 3, place.type);
  const Tensor C = at_place({batch, groups, state_size}, 4, place.type), z = at_place(x.shape(), 5, place.type);
  const Tensor A_log = at_place({heads}, 6, DType::f32), D = at_place({heads, width}, 7, DType::f32);
  const Tensor start = at_place({batch, heads, width, state_size}, 8, DType::f32);
  const auto step = [&](int64_t from, int64_t to, const Tensor& state) {
    const auto rows = [&](const Tensor& t) { return t.slice_first(from, to); };
    return ssd_step({.x = rows(x), .dt = rows(dt), .A_log = A_log, .B = rows(B), .C = rows(C), .D = D, .z = rows(z),
                     .dt_bias = {}, .state = state});
  };
  const Tensor all = clone(start), y = step(0, batch, all);
  for (const int64_t from : {int64_t{0}, int64_t{61}, batch - few}) {
    const Tensor some = clone(start.slice_first(from, from + few)), expected = step(from, from + few, some);
    CHECK(bitwise_equal(all.slice_first(from, from + few), some));
    CHECK(relative_rms(y.slice_first(from, from + few), expected) < allowed(place));
  }
}

TEST_CASE("ssd places: with bf16 the parameters stay f32") {
  const Case c{};
  auto t = inputs_of(c);
  for (size_t i = 0; i < 9; ++i) t[i] = to(t[i], flows(i) || i == 5 ? DType::bf16 : DType::f32);
  CHECK_THROWS_WITH(outputs_of(c, t), ContainsSubstring("Ssd: x is bf16 but [4] is bf16, not f32"));
}

TEST_CASE("ssd places: limits of the time step out of order are refused, in a run and in a step") {
  const Tensor x = zeros({1, 2, 3}), dt = zeros({1, 2}), A_log = zeros({2}), B = zeros({1, 1, 4}),
               state = zeros({1, 2, 3, 4});
  const auto step = [&](double least, double most) {
    return ssd_step(
        {.x = x, .dt = dt, .A_log = A_log, .B = B, .C = B, .D = {}, .z = {}, .dt_bias = {}, .state = state,
         .dt_min = least, .dt_max = most});
  };
  const auto whole = [&](double least, double most) {
    return apply(Ssd{.x = x.reshape({1, 1, 2, 3}), .dt = dt.reshape({1, 1, 2}), .A_log = A_log,
                     .B = B.reshape({1, 1, 1, 4}), .C = B.reshape({1, 1, 1, 4}), .D = {}, .z = {}, .dt_bias = {},
                     .initial_state = {}, .document = {}, .dt_min = least, .dt_max = most});
  };
  CHECK_NOTHROW(step(0.1, 0.1));
  CHECK_THROWS_WITH(step(-0.1, 1), ContainsSubstring("ssd_step: dt_min -0.1 and dt_max 1"));
  CHECK_THROWS_WITH(step(0.2, 0.1), ContainsSubstring("ssd_step: dt_min 0.2 and dt_max 0.1"));
  CHECK_THROWS_WITH(whole(-0.1, 1), ContainsSubstring("Ssd: dt_min -0.1 and dt_max 1"));
  CHECK_THROWS_WITH(whole(0.2, 0.1), ContainsSubstring("Ssd: dt_min 0.2 and dt_max 0.1"));
}
