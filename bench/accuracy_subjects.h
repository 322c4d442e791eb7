// What accuracy.cpp measures: operators at the sizes of published models and at odd ones.
#pragma once

#include "adder/autograd/params.h"
#include "adder/autograd/tape.h"
#include "adder/kernels/adamw.h"
#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/cross_entropy.h"
#include "adder/kernels/embedding.h"
#include "adder/kernels/gated_rms_norm.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/rms_norm.h"
#include "adder/kernels/ssd/ssd.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

namespace adder::accuracy {

/// Tensors by name.
using Named = std::map<std::string, Tensor>;

/// What an input is, and so its dtype on the GPU. The first two and the numbers have one row for each batch row.
enum class Kind {
  flow,       // an activation: bf16
  wide,       // f32
  index,      // i32
  weight,     // of a product: bf16, its gradient f32
  parameter,  // f32
};

struct Input {
  std::string name;
  Kind kind;
  Shape shape;
  Init init;
  bool by_row() const { return kind == Kind::flow || kind == Kind::wide || kind == Kind::index; }
};

/// An operator at one size. Its batch rows do not know of each other: f64 takes one at a time.
struct Subject {
  std::string op, size;
  int64_t rows;  // the first axis of all that is by row
  std::vector<Input> inputs;
  std::vector<std::string> outputs;
  std::function<std::vector<Tensor>(Named)> f;
  std::string title() const { return op + " " + size; }
};

inline Init uniform(double low, double high, std::function<double(double)> f) {
  return [=](const Random& random, uint64_t i) { return f(random.uniform(i, 1) * (high - low) + low); };
}
inline Init tokens_below(int64_t n) {
  return [=](const Random& random, uint64_t i) {
    return static_cast<double>(random.bits(i) % static_cast<uint64_t>(n));
  };
}
// In a row of `time` tokens the documents grow longer: 1, 3, 5, 7, ... tokens.
inline Init growing_documents(int64_t time) {
  return [=](const Random&, uint64_t i) {
    return std::floor(std::sqrt(static_cast<double>(i % static_cast<uint64_t>(time))));
  };
}
inline Init around_one() {
  return [](const Random& random, uint64_t i) { return 1 + 0.3 * random.normal(i); };
}

// As Mamba-2 starts: A uniform in -16..-1, Δ log-uniform in 1e-3..0.1 through dt_bias.
inline Subject ssd(int64_t B, int64_t L, int64_t H, int64_t P, int64_t N, int64_t G, bool all) {
  const Shape x{B, L, H, P}, shared{B, L, G, N}, heads{H};
  const Init normal = init::normal(1);
  Subject s{.op = "Ssd",
            .size = fmt::format("B{} L{} H{} P{} N{} G{}{}", B, L, H, P, N, G, all ? ", all options" : ""),
            .rows = B,
            .inputs = {{"x", Kind::flow, x, normal},
                       {"dt", Kind::flow, {B, L, H}, init::normal(0.5)},
                       {"A_log", Kind::parameter, heads, uniform(1, 16, [](double a) { return std::log(a); })},
                       {"B", Kind::flow, shared, normal},
                       {"C", Kind::flow, shared, normal},
                       {"D", Kind::parameter, heads, around_one()},
                       {"dt_bias", Kind::parameter, heads, uniform(std::log(1e-3), std::log(0.1), [](double log_delta) {
                          return std::log(std::expm1(std::exp(log_delta)));
                        })}},
            .outputs = {"y", "final state"},
            .f = [](Named t) {
              const auto [y, last] = apply(Ssd{.x = t["x"], .dt = t["dt"], .A_log = t["A_log"], .B = t["B"],
                                               .C = t["C"], .D = t["D"], .z = t["z"], .dt_bias = t["dt_bias"],
                                               .initial_state = t["initial_state"], .document = t["document"],
                                               .final_state = true});
              return std::vector{y, last};
            }};
  if (all)
    s.inputs.insert(s.inputs.end(), {{"z", Kind::flow, x, normal},
                                     {"initial_state", Kind::wide, {B, H, P, N}, normal},
                                     {"document", Kind::index, {B, L}, growing_documents(L)}});
  return s;
}

inline Subject conv(int64_t B, int64_t L, int64_t C, int64_t width) {
  return {"CausalConv1d", fmt::format("B{} L{} C{} W{}", B, L, C, width), B,
          {{"x", Kind::flow, {B, L, C}, init::normal(1)},
           {"weight", Kind::parameter, {C, width}, init::normal(0.5)},
           {"bias", Kind::parameter, {C}, init::normal(0.5)},
           {"initial_state", Kind::flow, {B, width - 1, C}, init::normal(1)},
           {"document", Kind::index, {B, L}, growing_documents(L)}},
          {"y", "final state"}, [](Named t) {
            const auto [y, last] = apply(CausalConv1d{.x = t["x"], .weight = t["weight"], .bias = t["bias"],
                                                      .initial_state = t["initial_state"], .document = t["document"],
                                                      .final_state = true});
            return std::vector{y, last};
          }};
}

inline Subject rms_norm(int64_t B, int64_t L, int64_t C) {
  return {"RmsNorm", fmt::format("{} x {}, f32 residual", B * L, C), B,
          {{"x", Kind::flow, {B, L, C}, init::normal(1)},
           {"residual", Kind::wide, {B, L, C}, init::normal(1)},
           {"weight", Kind::parameter, {C}, around_one()}},
          {"y", "s"}, [](Named t) {
            const auto [y, s] = apply(RmsNorm{.x = t["x"], .residual = t["residual"], .weight = t["weight"]});
            return std::vector{y, s};
          }};
}

inline Subject gated_rms_norm(int64_t B, int64_t L, int64_t C) {
  return {"GatedRmsNorm", fmt::format("{} x {}", B * L, C), B,
          {{"y", Kind::flow, {B, L, C}, init::normal(1)},
           {"z", Kind::flow, {B, L, C}, init::normal(1)},
           {"weight", Kind::parameter, {C}, around_one()}},
          {"out"},
          [](Named t) { return std::vector{apply(GatedRmsNorm{.y = t["y"], .z = t["z"], .weight = t["weight"]})}; }};
}

inline Subject cross_entropy(int64_t tokens, int64_t d, int64_t vocabulary) {
  return {"LinearCrossEntropy", fmt::format("{} x {}, vocabulary {}", tokens, d, vocabulary), 1,
          {{"x", Kind::flow, {1, tokens, d}, init::normal(1)},
           {"weight", Kind::weight, {vocabulary, d}, init::normal(0.02)},
           {"targets", Kind::index, {1, tokens}, tokens_below(vocabulary)}},
          {"loss"}, [=](Named t) {
            const Tensor scale = full({1}, 1 / static_cast<double>(tokens), DType::f64, t["x"].device());
            return std::vector{apply(LinearCrossEntropy{.x = t["x"], .weight = t["weight"], .targets = t["targets"],
                                                        .scale = scale})};
          }};
}

inline Subject matmul(int64_t B, int64_t L, int64_t in, int64_t out) {
  return {"Matmul", fmt::format("{} x {} to {}", B * L, in, out), B,
          {{"x", Kind::flow, {B, L, in}, init::normal(1)}, {"weight", Kind::weight, {out, in}, init::normal(0.02)}},
          {"y"},
          [](Named t) { return std::vector{apply(Matmul{.x = t["x"], .weight = t["weight"], .bias = {}})}; }};
}

inline Subject embedding(int64_t B, int64_t L, int64_t vocabulary, int64_t d) {
  return {"Embedding", fmt::format("{} of {} x {}", B * L, vocabulary, d), B,
          {{"tokens", Kind::index, {B, L}, tokens_below(vocabulary)},
           {"weight", Kind::weight, {vocabulary, d}, init::normal(1)}},
          {"y"}, [](Named t) { return std::vector{apply(Embedding{.tokens = t["tokens"], .weight = t["weight"]})}; }};
}

/// The thousandth step, clipped; it has no backward.
inline std::vector<Tensor> adamw_step(Named t) {
  const Device device = t["p"].device();
  std::vector<double> c(AdamWControls::size);
  c[AdamWControls::learning_rate] = 1e-2;
  c[AdamWControls::max_norm] = 1;
  c[AdamWControls::applied] = 999;
  AdamWUpdate u{.parameter = clone(t["p"]), .gradient = t["g"].detach(), .exp_avg = clone(t["m"]),
                .exp_avg_sq = clone(t["v"]), .controls = from_host({AdamWControls::size}, c, DType::f64, device),
                .ranges = adamw_ranges({{.end = t["p"].count(), .weight_decay = 0.1}}, device)};
  if (device == Device::cuda) u.rounded = Tensor(u.parameter.shape(), DType::bf16, device);
  const Tensor squares = u.controls.slice_first(AdamWControls::squares, AdamWControls::squares + 1);
  on(device, [&](auto backend) {
    sum_of_squares(backend, {&u.gradient, 1}, squares);
    adamw_controls(backend, u.controls);
    adamw_update(backend, u);
  });
  return {u.parameter, u.exp_avg, u.exp_avg_sq, u.rounded ? u.rounded : u.parameter};
}

inline Subject adamw(int64_t n) {
  const Init square = [](const Random& random, uint64_t i) { return 1e-8 * std::pow(random.normal(i), 2); };
  return {"AdamW", fmt::format("{} parameters", n), 1,
          {{"p", Kind::wide, {1, n}, init::normal(0.1)}, {"g", Kind::wide, {1, n}, init::normal(1e-3)},
           {"m", Kind::wide, {1, n}, init::normal(1e-4)}, {"v", Kind::wide, {1, n}, square}},
          {"parameter", "first moment", "second moment", "bf16 copy"}, adamw_step};
}

inline std::vector<Subject> subjects() {
  std::vector<Subject> all{ssd(8, 4096, 80, 64, 128, 1, false), ssd(8, 4096, 80, 64, 128, 8, false),
                           ssd(8, 4096, 80, 64, 128, 1, true)};
  for (const auto& [P, N] : {std::pair{64, 64}, std::pair{32, 48}, std::pair{3, 5}})
    for (const int64_t L : {1, 63, 65, 257, 1000}) all.push_back(ssd(2, L, 6, P, N, 3, true));
  all.insert(all.end(), {conv(8, 4096, 5376, 4), rms_norm(16, 4096, 768), gated_rms_norm(16, 4096, 1536),
                         cross_entropy(2048, 768, 50288), matmul(8, 2048, 768, 3352), embedding(16, 4096, 50288, 768),
                         adamw((1 << 25) + 1)});
  return all;
}

}  // namespace adder::accuracy
