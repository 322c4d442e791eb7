#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/accumulate.h"
#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/view.h"
#include "adder/tests/places.h"

#include "catch.h"

#include <omp.h>

#include <cmath>
#include <limits>

using namespace adder;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// The formula, one number at a time: y and the final state.
std::array<Tensor, 2> naive(const CausalConv1d& conv) {
  const int64_t batch = conv.x.size(0), time = conv.x.size(1), channels = conv.x.size(2), width = conv.weight.size(1);
  const int64_t past = width - 1;
  const auto x = to_host(conv.x), w = to_host(conv.weight);
  const auto bias = conv.bias ? to_host(conv.bias) : std::vector<double>(static_cast<size_t>(channels));
  const auto state = conv.initial_state ? to_host(conv.initial_state) : std::vector<double>();
  const auto input = [&](int64_t b, int64_t t, int64_t c) {
    if (t >= 0) return x[static_cast<size_t>((b * time + t) * channels + c)];
    return state.empty() ? 0.0 : state[static_cast<size_t>((b * past + past + t) * channels + c)];
  };
  const auto boundary_in = [&](int64_t b, int64_t after, int64_t upto) {  // (after, upto]
    for (int64_t t = std::max<int64_t>(1, after + 1); conv.document && t <= upto; ++t) {
      const int32_t* d = conv.document.data<int32_t>() + b * time;
      if (d[t] != d[t - 1]) return true;
    }
    return false;
  };
  std::vector<double> y(x.size()), last(static_cast<size_t>(batch * past * channels));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < time; ++t) {
        double s = bias[static_cast<size_t>(c)];
        for (int64_t k = 0; k < width && t - k >= -past; ++k)
          if (!boundary_in(b, t - k, t)) s += w[static_cast<size_t>(c * width + past - k)] * input(b, t - k, c);
        y[static_cast<size_t>((b * time + t) * channels + c)] = conv.silu ? s / (1 + std::exp(-s)) : s;
      }
      for (int64_t i = 0; i < past; ++i)
        if (const int64_t t = time - past + i; !boundary_in(b, t, time - 1))
          last[static_cast<size_t>((b * past + i) * channels + c)] = input(b, t, c);
    }
  return {from_host(conv.x.shape(), y, DType::f64), from_host({batch, past, channels}, last, DType::f64)};
}

// Documents that begin at irregular places and use the numbers 0 and 1 again and again.
Tensor documents(int64_t batch, int64_t time) {
  std::vector<int32_t> ids;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < time; ++t) ids.push_back(t % 17 == 2 || t % 17 == 3 || t % 17 == 6 + b ? 1 : 0);
  return from_host({batch, time}, ids);
}

struct Options {
  bool bias = true, state = true, documents = true, silu = true;
};

CausalConv1d make(int64_t batch, int64_t time, int64_t channels, int64_t width, const Options& o = {}) {
  return {.x = random_normal({batch, time, channels}, 1),
          .weight = random_normal({channels, width}, 2),
          .bias = o.bias ? random_normal({channels}, 3) : Tensor(),
          .initial_state = o.state ? random_normal({batch, width - 1, channels}, 4) : Tensor(),
          .document = o.documents ? documents(batch, time) : Tensor(),
          .silu = o.silu,
          .final_state = true};
}

// Elements [begin, end) of the middle axis, copied.
Tensor middle(const Tensor& t, int64_t begin, int64_t end) {
  const Tensor part({t.size(0), end - begin, t.size(2)}, t.dtype());
  for (int64_t b = 0; b < t.size(0); ++b)
    copy(t.slice_first(b, b + 1).reshape({t.size(1), t.size(2)}).slice_first(begin, end),
         part.slice_first(b, b + 1).reshape({end - begin, t.size(2)}));
  return part;
}

// Gradients of x, weight, bias, initial_state for the given gradients of the outputs.
std::array<Tensor, 4> gradients(CausalConv1d conv, const Tensor& dy, const Tensor& dfinal) {
  std::array<Tensor, 4> leaves{conv.x, conv.weight, conv.bias, conv.initial_state};
  for (Tensor& t : leaves)
    if (t) t = leaf(t);
  std::tie(conv.x, conv.weight, conv.bias, conv.initial_state) = std::tie(leaves[0], leaves[1], leaves[2], leaves[3]);
  backward(apply(std::move(conv)), std::array{dy, dfinal});
  for (Tensor& t : leaves)
    if (t) t = gradient(t);
  return leaves;
}

GradientCheck check_conv(const CausalConv1d& conv, bool use_y, bool use_final) {
  return check_gradients(
      [&](std::span<const Tensor> t) {
        CausalConv1d op = conv;
        std::tie(op.x, op.weight, op.bias, op.initial_state) = std::tie(t[0], t[1], t[2], t[3]);
        const auto [y, final] = apply(std::move(op));
        return std::vector{use_y ? y : Tensor(), use_final ? final : Tensor()};
      },
      {conv.x, conv.weight, conv.bias, conv.initial_state});
}

}  // namespace

TEST_CASE("causal_conv1d: equals the formula at every width, time and option") {
  const int64_t width = GENERATE(1, 2, 3, 4, 5, 7, 150);
  const Options o{.bias = GENERATE(false, true), .state = GENERATE(false, true), .documents = GENERATE(false, true),
                  .silu = GENERATE(false, true)};
  for (const int64_t time : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, width - 1, width, int64_t{65}}) {
    CausalConv1d conv = make(2, time, 5, width, o);
    const auto [y, final] = apply(conv);
    const auto [y_naive, final_naive] = naive(conv);
    INFO("width " << width << " time " << time);
    CHECK(max_difference(y, y_naive) < 1e-12);  // up to 150 roundings of O(10) sums
    CHECK(bitwise_equal(final, final_naive));
    conv.final_state = false;
    CHECK_FALSE(apply(conv)[1].defined());
  }
}

TEST_CASE("causal_conv1d: more tokens and channels than one tile") {
  const CausalConv1d conv = make(2, 261, 3, 4);
  CHECK(max_difference(apply(conv)[0], naive(conv)[0]) < 1e-13);  // five roundings of O(10) numbers
  const auto g = check_conv(make(1, 259, 3, 4), true, true);
  INFO(g.worst);
  CHECK(g.error < 1e-6);

  // Channels know nothing of each other: a wide run is its narrow slices, but for the order of contraction.
  const CausalConv1d wide = make(1, 130, 2053, 4);
  const Tensor dy = random_normal(wide.x.shape(), 5), dfinal = random_normal(wide.initial_state.shape(), 6);
  const auto all = gradients(wide, dy, dfinal);
  const int64_t begin = 2045, end = 2053;
  CausalConv1d narrow = wide;
  narrow.x = wide.x.slice_last(begin, end);
  narrow.weight = wide.weight.slice_first(begin, end);
  narrow.bias = wide.bias.slice_first(begin, end);
  narrow.initial_state = wide.initial_state.slice_last(begin, end);
  CHECK(max_difference(apply(wide)[0].slice_last(begin, end), apply(narrow)[0]) < 1e-13);
  const auto part = gradients(narrow, dy.slice_last(begin, end), dfinal.slice_last(begin, end));
  CHECK(max_difference(all[0].slice_last(begin, end), part[0]) < 1e-13);
  CHECK(max_difference(all[1].slice_first(begin, end), part[1]) < 1e-12);  // sums of 130 terms
  CHECK(max_difference(all[2].slice_first(begin, end), part[2]) < 1e-12);
  CHECK(max_difference(all[3].slice_last(begin, end), part[3]) < 1e-13);
}

TEST_CASE("causal_conv1d: gradients equal differences for every option") {
  const Options o{.bias = GENERATE(false, true), .state = GENERATE(false, true), .documents = GENERATE(false, true),
                  .silu = GENERATE(false, true)};
  for (const int64_t width : {1, 2, 4, 5})
    for (const int64_t time : {1, 3, 7})
      for (const int outputs : {1, 2, 3}) {  // y alone, the final state alone, both
        const auto g = check_conv(make(2, time, 3, width, o), outputs & 1, outputs & 2);
        INFO("width " << width << " time " << time << " outputs " << outputs << ": " << g.worst);
        CHECK(g.error < 1e-6);
      }
}

TEST_CASE("causal_conv1d: gradients reach past a tile at a width larger than one") {
  const auto g = check_conv(make(1, 150, 2, 140, {.documents = false}), true, true);
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("causal_conv1d: a run split anywhere with the state carried is one run") {
  const int64_t width = GENERATE(1, 2, 4, 7), split = GENERATE(0, 1, 2, 5, 11, 12);
  const bool packed = GENERATE(false, true);
  const int64_t time = 12, channels = 3;
  CausalConv1d whole = make(2, time, channels, width, {.documents = packed});
  // The second run must begin inside a document: a boundary at the split would cut the state off.
  if (packed)
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t t = 0; t < time; ++t) whole.document.data<int32_t>()[b * time + t] = t >= split - 1 || t < 3 ? 7 : 8;
  const Tensor dy = random_normal(whole.x.shape(), 5), dfinal = random_normal(whole.initial_state.shape(), 6);
  const auto one = gradients(whole, dy, dfinal);

  const auto part = [&](int64_t begin, int64_t end) {
    CausalConv1d p = whole;
    p.x = leaf(middle(whole.x, begin, end));
    if (packed) p.document = contiguous(whole.document.slice_last(begin, end));
    return p;
  };
  CausalConv1d first = part(0, split), second = part(split, time);
  first.weight = second.weight = leaf(whole.weight);
  first.bias = second.bias = leaf(whole.bias);
  first.initial_state = leaf(whole.initial_state);
  const auto [y1, state] = apply(first);
  second.initial_state = state;
  const auto [y2, final] = apply(second);
  const auto [y, final_whole] = apply(whole);
  CHECK(bitwise_equal(y1, middle(y, 0, split)));
  CHECK(bitwise_equal(y2, middle(y, split, time)));
  CHECK(bitwise_equal(final, final_whole));

  backward(std::array{y1, y2, final}, std::array{middle(dy, 0, split), middle(dy, split, time), dfinal});
  const double rounding = 1e-13;  // sums of a dozen O(1) terms in another order
  CHECK(max_difference(gradient(first.x), middle(one[0], 0, split)) < rounding);
  CHECK(max_difference(gradient(second.x), middle(one[0], split, time)) < rounding);
  CHECK(max_difference(gradient(first.weight), one[1]) < rounding);
  CHECK(max_difference(gradient(first.bias), one[2]) < rounding);
  CHECK(max_difference(gradient(first.initial_state), one[3]) < rounding);
}

TEST_CASE("causal_conv1d: packed documents are separate documents") {
  const int64_t width = GENERATE(1, 3, 4, 6);
  const std::vector<int64_t> ends{2, 3, 9, 140, 145};
  CausalConv1d packed = make(1, 145, 5, width, {.state = false});
  for (int64_t t = 0, n = 0; t < 145; ++t) {
    if (t == ends[static_cast<size_t>(n)]) ++n;
    packed.document.data<int32_t>()[t] = static_cast<int32_t>(n % 2);  // the numbers return
  }
  const Tensor dy = random_normal(packed.x.shape(), 5), y = apply(packed)[0];
  const auto all = gradients(packed, dy, {});
  const Tensor dweight = zeros(packed.weight.shape(), DType::f64);
  int64_t begin = 0;
  for (const int64_t end : ends) {
    CausalConv1d one = packed;
    one.document = {};
    one.x = middle(packed.x, begin, end);
    CHECK(bitwise_equal(apply(one)[0], middle(y, begin, end)));
    const auto g = gradients(one, middle(dy, begin, end), {});
    CHECK(bitwise_equal(g[0], middle(all[0], begin, end)));
    accumulate(g[1], dweight);
    begin = end;
  }
  CHECK(max_difference(dweight, all[1]) < 1e-12);  // a sum of 145 terms in another order
  CausalConv1d last = packed;
  last.document = {};
  last.x = middle(packed.x, 140, 145);
  CHECK(bitwise_equal(apply(packed)[1], apply(last)[1]));
}

TEST_CASE("causal_conv1d: a step is forward at that position, bit for bit") {
  const int64_t width = GENERATE(1, 2, 4, 7);
  const bool bias = GENERATE(false, true), silu = GENERATE(false, true);
  const CausalConv1d conv = make(3, 9, 5, width, {.bias = bias, .documents = false, .silu = silu});
  const auto [y, final] = apply(conv);
  const Tensor state = clone(conv.initial_state);
  for (int64_t t = 0; t < 9; ++t) {
    const Tensor x = middle(conv.x, t, t + 1).reshape({3, 5}), wide = full({3, 8}, not_a_number, DType::f64);
    copy(x, wide.slice_last(2, 7));
    const Tensor step = causal_conv1d_step({.x = wide.slice_last(2, 7), .state = state, .weight = conv.weight,
                                            .bias = conv.bias, .silu = silu});
    CHECK(bitwise_equal(step, middle(y, t, t + 1).reshape({3, 5})));
  }
  CHECK(bitwise_equal(state, final));
}

TEST_CASE("causal_conv1d: NaN in one document or sequence reaches no other") {
  const int64_t width = GENERATE(2, 4, 5), time = 12;
  const CausalConv1d clean = make(2, time, 3, width);
  const Tensor dy = random_normal(clean.x.shape(), 5), dfinal = random_normal(clean.initial_state.shape(), 6);
  const auto with_nan = [&](const Tensor& t, int64_t begin, int64_t end) {  // in sequence 1
    const Tensor bad = clone(t);
    fill(bad.slice_first(1, 2).reshape({t.size(1), t.size(2)}).slice_first(begin, end), not_a_number);
    return bad;
  };
  // Sequence 1 changes its document at 2, 4 and 7, 8; see documents().
  CausalConv1d dirty = clean;
  SECTION("a document in the middle") {
    dirty.x = with_nan(clean.x, 4, 7);
    const auto [y, final] = apply(dirty);
    const auto g = gradients(dirty, with_nan(dy, 4, 7), dfinal), expected = gradients(clean, dy, dfinal);
    const auto [y_clean, final_clean] = apply(clean);
    for (const auto& [begin, end] : {std::pair{0, 4}, std::pair{7, 12}}) {
      CHECK(bitwise_equal(middle(y, begin, end), middle(y_clean, begin, end)));
      CHECK(bitwise_equal(middle(g[0], begin, end), middle(expected[0], begin, end)));
    }
    CHECK(std::isnan(to_host(y).back()) == false);
    CHECK(std::isnan(to_host(middle(y, 4, 7)).back()));
    CHECK(bitwise_equal(final, final_clean));
    CHECK(bitwise_equal(g[3], expected[3]));
    CHECK(bitwise_equal(middle(y, 0, 12).slice_first(0, 1), y_clean.slice_first(0, 1)));
    CHECK(bitwise_equal(g[0].slice_first(0, 1), expected[0].slice_first(0, 1)));
  }
  SECTION("the initial state") {
    dirty.initial_state = with_nan(clean.initial_state, 0, width - 1);
    const auto g = gradients(dirty, dy, dfinal), expected = gradients(clean, dy, dfinal);
    CHECK(bitwise_equal(middle(apply(dirty)[0], 2, 12), middle(apply(clean)[0], 2, 12)));
    CHECK(bitwise_equal(apply(dirty)[1], apply(clean)[1]));
    CHECK(bitwise_equal(middle(g[0], 2, 12), middle(expected[0], 2, 12)));
  }
  SECTION("the gradient of the final state") {
    const auto g = gradients(clean, dy, with_nan(dfinal, 0, width - 1)), expected = gradients(clean, dy, dfinal);
    CHECK(bitwise_equal(middle(g[0], 0, 8), middle(expected[0], 0, 8)));
    for (int i : {1, 2, 3}) CHECK(bitwise_equal(g[static_cast<size_t>(i)], expected[static_cast<size_t>(i)]));
  }
}

TEST_CASE("causal_conv1d: rows may lie apart, in operands and in gradients") {
  const CausalConv1d conv = make(2, 7, 5, 4);
  const Tensor dy = random_normal(conv.x.shape(), 5), dfinal = random_normal(conv.initial_state.shape(), 6);
  const auto expected = gradients(conv, dy, dfinal);
  const auto apart = [](const Tensor& t) {  // the same values inside a wider tensor of NaN
    const Tensor wide = full(t.shape().with(-1, t.size(-1) + 3), not_a_number, t.dtype());
    const Tensor view = wide.slice_last(1, t.size(-1) + 1);
    copy(t, view);
    return view;
  };
  const Tensor ids = Tensor({2, 9}, DType::i32);
  for (int64_t i = 0; i < 18; ++i)
    ids.data<int32_t>()[i] = i % 9 < 7 ? conv.document.data<int32_t>()[i / 9 * 7 + i % 9] : -5;
  CausalConv1d wide = conv;
  const Tensor dx = apart(conv.x), dweight = apart(conv.weight);
  wide.x = leaf(apart(conv.x), dx);
  wide.weight = leaf(apart(conv.weight), dweight);
  wide.initial_state = leaf(apart(conv.initial_state));
  wide.document = ids.slice_last(0, 7);
  const auto outputs = apply(wide);
  CHECK(bitwise_equal(outputs[0], apply(conv)[0]));
  CHECK(bitwise_equal(outputs[1], apply(conv)[1]));
  backward(outputs, std::array{apart(dy), apart(dfinal)});
  CHECK(bitwise_equal(contiguous(dx), expected[0]));
  CHECK(bitwise_equal(contiguous(dweight), expected[1]));
  CHECK(bitwise_equal(gradient(wide.initial_state), expected[3]));
}

TEST_CASE("causal_conv1d: one tensor as x and as the state gets both gradients") {
  const Tensor x = random_normal({2, 3, 5}, 1), w = random_normal({5, 4}, 2);
  const auto g = check_gradients(
      [](std::span<const Tensor> t) {
        const auto y = apply(CausalConv1d{.x = t[0], .weight = t[1], .initial_state = t[0], .final_state = true});
        return std::vector{y[0], y[1]};
      },
      {x, w});
  INFO(g.worst);
  CHECK(g.error < 1e-6);
}

TEST_CASE("causal_conv1d: f32 agrees with f64, and threads change nothing") {
  const CausalConv1d conv = make(2, 300, 259, 4);
  CausalConv1d single = conv;
  for (Tensor* t : {&single.x, &single.weight, &single.bias, &single.initial_state}) *t = to(*t, DType::f32);
  const Tensor dy = random_normal(conv.x.shape(), 5), dfinal = random_normal(conv.initial_state.shape(), 6);
  // Rounding the inputs to f32 alone moves the outputs by about 1e-7.
  CHECK(relative_rms(apply(single)[0], apply(conv)[0]) < 5e-7);
  const auto g = gradients(single, to(dy, DType::f32), to(dfinal, DType::f32)), expected = gradients(conv, dy, dfinal);
  for (size_t i = 0; i < 4; ++i) CHECK(relative_rms(g[i], expected[i]) < 1e-6);

  const int threads = omp_get_max_threads();
  for (const int n : {1, 3}) {
    omp_set_num_threads(n);
    const auto again = gradients(single, to(dy, DType::f32), to(dfinal, DType::f32));
    for (size_t i = 0; i < 4; ++i) CHECK(bitwise_equal(again[i], g[i]));
  }
  omp_set_num_threads(threads);
}

TEST_CASE("causal_conv1d: the tape keeps the operands and nothing else") {
  const CausalConv1d conv = make(2, 64, 32, 4);
  CausalConv1d op = conv;
  op.x = leaf(conv.x);
  op.final_state = false;
  const int64_t before = memory_use(Device::cpu).in_use;
  const auto y = apply(op);
  CHECK(memory_use(Device::cpu).in_use - before == 2 * 64 * 32 * 8);  // y
}

TEST_CASE("causal_conv1d: bad operands are named") {
  const CausalConv1d good = make(2, 6, 5, 4);
  const auto message = [&](auto change) {
    CausalConv1d conv = good;
    change(conv);
    try {
      apply(conv);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  using Conv = CausalConv1d;
  CHECK(message([](Conv&) {}) == "accepted");
  CHECK(message([](Conv& c) { c.x = c.x.matrix(); }) == "CausalConv1d: x [12, 5] is not [batch, time, channel]");
  CHECK(message([](Conv& c) { c.weight = c.weight.slice_first(0, 4); }) ==
        "CausalConv1d: x [2, 6, 5] but weight [4, 4]");
  CHECK(message([](Conv& c) { c.weight = c.weight.slice_last(0, 0); }) ==
        "CausalConv1d: x [2, 6, 5] but weight [5, 0]");
  CHECK(message([](Conv& c) { c.bias = c.bias.slice_first(0, 3); }) ==
        "CausalConv1d: x [2, 6, 5] needs bias [5], not [3]");
  CHECK(message([](Conv& c) { c.initial_state = c.x; }) ==
        "CausalConv1d: x [2, 6, 5] needs an initial state [2, 3, 5], not [2, 6, 5]");
  CHECK(message([](Conv& c) { c.document = c.document.slice_last(0, 5); }) ==
        "CausalConv1d: x [2, 6, 5] needs document [2, 6], not [2, 5]");
  CHECK(message([](Conv& c) { c.document = zeros({2, 6}); }) == "CausalConv1d: document holds f32, not i32");
  CHECK(message([](Conv& c) { c.bias = to(c.bias, DType::f32); }) == "CausalConv1d: bias holds f32, not f64");
  CausalConv1dStep step{.x = zeros({2, 5}), .state = zeros({2, 4, 5}), .weight = zeros({5, 4})};
  CHECK_THROWS_WITH(causal_conv1d_step(step),
                    Catch::Matchers::Equals("CausalConv1d: x [2, 5] needs a state [2, 3, 5], not [2, 4, 5]"));
  step.state = {};
  CHECK_THROWS_WITH(causal_conv1d_step(step),
                    Catch::Matchers::Equals("CausalConv1d: a step needs a state [2, 3, 5]"));
}

// What follows runs on every backend. On the GPU aligned rows at widths 2 to 4 take one kind of kernel, the rest
// another.
namespace {

// The operands at a place; beside bf16 the weight and the bias stay f32.
CausalConv1d at(const Place& place, CausalConv1d conv) {
  const auto there = [&](const Tensor& t, DType type) { return t ? to_device(to(t, type), place.device) : t; };
  return {.x = there(conv.x, place.type),
          .weight = there(conv.weight, DType::f32),
          .bias = there(conv.bias, DType::f32),
          .initial_state = there(conv.initial_state, place.type),
          .document = to_device(conv.document, place.device),
          .silu = conv.silu,
          .final_state = conv.final_state};
}

// Against f64, x `lead` channels into wider rows. Gradients of the parameters and the state are also added to.
struct Check {
  int64_t lead = 8;
  bool use_y = true;
  bool add_to_x = true;
};
void check_place(const Place& place, const CausalConv1d& conv, const Check& o = {}) {
  const int64_t lead = o.lead;
  const int64_t channels = conv.x.size(2);
  const Tensor wide = random_normal(conv.x.shape().with(-1, channels + 2 * lead), 7);
  const auto f = [&](std::span<const Tensor> t) {
    const auto parts = apply(Split{.x = t[0], .sizes = {lead, channels, lead}});
    CausalConv1d op{.x = parts[1], .weight = t[1], .bias = t[2], .initial_state = t[3],
                    .document = to_device(conv.document, t[0].device()), .silu = conv.silu, .final_state = true};
    const auto [y, final] = apply(std::move(op));
    return std::vector{o.use_y ? y : Tensor(), final, parts[0], o.add_to_x ? parts[1] : Tensor(), t[1], t[2], t[3]};
  };
  const auto single = [](const Tensor& t) { return t ? to(t, DType::f32) : t; };
  INFO("width " << conv.weight.size(1) << " time " << conv.x.size(1) << " channels " << channels);
  // Sums of 1024 f32 numbers.
  check_at(place, f, {wide, single(conv.weight), single(conv.bias), conv.initial_state}, 2e-6);
}

}  // namespace

TEST_CASE("causal_conv1d: every backend agrees with f64 at every width and option", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const Options o{.bias = GENERATE(false, true), .state = GENERATE(false, true), .documents = GENERATE(false, true),
                  .silu = GENERATE(false, true)};
  for (const int64_t width : {1, 2, 3, 4, 6}) {
    check_place(place, make(2, 7, 8, width, o), {.lead = 8});
    check_place(place, make(2, 7, 8, width, o), {.lead = 4});
    check_place(place, make(2, 7, 5, width, o), {.lead = 3});
    check_place(place, make(1, 69, 8, width, o), {.add_to_x = false});
  }
}

TEST_CASE("causal_conv1d: a document may begin anywhere in a tile on every backend", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(2, 3, 4), time = 131;
  // Around the edges of groups of 4 tokens, of halves of a tile of 64 and of tiles; one or two of them in a sequence.
  const std::array begins{1, 2, 4, 7, 31, 32, 35, 61, 62, 63, 64, 65, 66, 67, 68, 127, 128, 129, 130};
  const auto sequences = static_cast<int64_t>(2 * begins.size());
  CausalConv1d conv = make(sequences, time, 8, width);
  for (int64_t i = 0; i < sequences * time; ++i) {
    const int64_t b = i / time, t = i % time, begin = begins[static_cast<size_t>(b / 2)];
    conv.document.data<int32_t>()[i] = t >= begin && (b % 2 == 0 || t < begin + 5) ? 9 : 8;
  }
  check_place(place, conv, {.add_to_x = false});
  check_place(place, conv);
}

TEST_CASE("causal_conv1d: every backend agrees with f64 at short, odd and production sizes", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  // One token past a tile, one tile past a block of them, one piece past a block of channels, fewer tokens than taps;
  // with and without whole pieces of 16 bytes.
  for (const auto& [batch, time, channels] : {std::tuple{1, 1, 4}, {1, 1, 8}, {3, 2, 8}, {2, 65, 12}, {2, 65, 16},
                                              {3, 131, 132}, {3, 131, 264}, {1, 321, 24}, {2, 131, 7}})
    for (const int64_t width : {2, 4, 5}) {
      check_place(place, make(batch, time, channels, width));
      check_place(place, make(batch, time, channels, width), {.add_to_x = false});
      check_place(place, make(batch, time, channels, width), {.use_y = false});  // a gradient of the final state alone
    }
  check_place(place, make(1, 150, 3, 140, {.documents = false}), {.lead = 4});
  check_place(place, make(2, 512, 1792, 4));
  check_place(place, make(2, 512, 1792, 4, {.bias = true, .state = false, .documents = false, .silu = true}),
              {.add_to_x = false});
}

TEST_CASE("causal_conv1d: rows of the weight and of its gradient may lie apart on every backend", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(2, 4), channels = GENERATE(7, 8), lead = GENERATE(1, 4);
  const CausalConv1d conv = at(place, make(2, 70, channels, width));
  const Tensor dy = to_device(random_normal(conv.x.shape(), 5, 1, 0, place.type), place.device);
  const auto expected = gradients(conv, dy, {});
  const auto apart = [&](const Tensor& t) {
    const Tensor view =
        to_device(full({channels, 2 * lead + width}, 7, DType::f32), place.device).slice_last(lead, lead + width);
    copy(t, view);
    return view;
  };
  const Tensor dweight = apart(conv.weight), dbias = clone(conv.bias), twice = clone(expected[1]);
  accumulate(expected[1], twice);
  CausalConv1d op = conv;
  op.weight = leaf(apart(conv.weight), dweight);
  op.bias = leaf(conv.bias, dbias);
  backward(apply(op), std::array{dy, Tensor()});
  CHECK(bitwise_equal(contiguous(dweight), expected[1]));
  CHECK(bitwise_equal(dbias, expected[2]));
  backward(apply(op), std::array{dy, Tensor()});
  CHECK(bitwise_equal(contiguous(dweight), twice));
}

TEST_CASE("causal_conv1d: walkers and plain kernels give the same y, bit for bit", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(2, 3, 4);
  for (const bool silu : {false, true}) {
    const CausalConv1d conv = at(place, make(2, 69, 16, width, {.silu = silu}));
    CausalConv1d shifted = conv;  // its rows are not whole pieces
    const Tensor wide = to_device(random_normal({2, 69, 19}, 9, 1, 0, place.type), place.device);
    shifted.x = wide.slice_last(1, 17);
    copy(conv.x, shifted.x);
    CHECK(bitwise_equal(apply(shifted)[0], apply(conv)[0]));
  }
}

TEST_CASE("causal_conv1d: no token at all on every backend", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(1, 4, 6);
  const CausalConv1d conv = at(place, make(2, 0, 8, width));
  CHECK(bitwise_equal(apply(conv)[1], conv.initial_state));
  const Tensor dfinal = to_device(random_normal({2, width - 1, 8}, 6, 1, 0, place.type), place.device);
  CHECK(bitwise_equal(gradients(conv, {}, dfinal)[3], dfinal));
}

TEST_CASE("causal_conv1d: a step is forward at that position on every backend, bit for bit", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(1, 2, 4, 7), channels = GENERATE(5, 8);
  const bool bias = GENERATE(false, true), silu = GENERATE(false, true);
  const CausalConv1d conv =
      at(place, make(3, 9, channels, width, {.bias = bias, .documents = false, .silu = silu}));
  const auto [y, final] = apply(conv);
  const Tensor state = clone(conv.initial_state), x = to_device(conv.x, Device::cpu), all = to_device(y, Device::cpu);
  for (int64_t t = 0; t < 9; ++t) {
    const Tensor token = to_device(middle(x, t, t + 1).reshape({3, channels}), place.device);
    const Tensor step = causal_conv1d_step(
        {.x = token, .state = state, .weight = conv.weight, .bias = conv.bias, .silu = silu});
    CHECK(bitwise_equal(step, middle(all, t, t + 1).reshape({3, channels})));
  }
  CHECK(bitwise_equal(state, final));
}

TEST_CASE("causal_conv1d: NaN reaches no other sequence or document on any backend", "[gpu][small]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t width = GENERATE(2, 4, 5), channels = GENERATE(5, 8);
  const CausalConv1d clean = make(2, 12, channels, width);
  // Sequence 1 changes its document at 2, 4 and 7, 8; see documents().
  CausalConv1d dirty = clean;
  dirty.x = clone(clean.x);
  const Tensor dy = random_normal(clean.x.shape(), 5), bad_dy = clone(dy);
  for (const Tensor& t : {dirty.x, bad_dy})
    fill(t.slice_first(1, 2).reshape({12, channels}).slice_first(4, 7), not_a_number);
  const auto run = [&](const CausalConv1d& f64, const Tensor& dy_) {
    const CausalConv1d conv = at(place, f64);
    const auto g = gradients(conv, to_device(to(dy_, place.type), place.device), {});
    return std::array{to_device(apply(conv)[0], Device::cpu), to_device(g[0], Device::cpu),
                      to_device(g[3], Device::cpu)};
  };
  const auto expected = run(clean, dy), got = run(dirty, bad_dy);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(bitwise_equal(got[i].slice_first(0, 1), expected[i].slice_first(0, 1)));
    CHECK(bitwise_equal(middle(got[i], 0, 4), middle(expected[i], 0, 4)));
    CHECK(bitwise_equal(middle(got[i], 7, 12), middle(expected[i], 7, 12)));
    CHECK(std::isnan(to_host(middle(got[i], 4, 7)).back()));
  }
  CHECK(bitwise_equal(got[2], expected[2]));
}

TEST_CASE("causal_conv1d: ten runs are equal bit for bit on every backend", "[gpu]") {
  const Place place = GENERATE(from_range(places()));
  const int64_t channels = GENERATE(7, 132);
  const CausalConv1d conv = at(place, make(3, 261, channels, 4));
  const auto there = [&](const Shape& shape) {
    return to_device(random_normal(shape, 5, 1, 0, place.type), place.device);
  };
  const Tensor dy = there(conv.x.shape()), dfinal = there(conv.initial_state.shape());
  const auto first = gradients(conv, dy, dfinal);
  for (int i = 0; i < 9; ++i)
    for (size_t k = 0; const Tensor& t : gradients(conv, dy, dfinal)) CHECK(bitwise_equal(t, first[k++]));
}

TEST_CASE("causal_conv1d: beside bf16 the weight and the bias are f32") {
  CausalConv1d conv{.x = Tensor({2, 6, 5}, DType::bf16), .weight = Tensor({5, 4}, DType::bf16)};
  CHECK_THROWS_WITH(apply(conv), Catch::Matchers::Equals("CausalConv1d: weight holds bf16, not f32"));
  conv.weight = zeros({5, 4});
  conv.bias = Tensor({5}, DType::bf16);
  CHECK_THROWS_WITH(apply(conv), Catch::Matchers::Equals("CausalConv1d: bias holds bf16, not f32"));
}
