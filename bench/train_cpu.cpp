// train_cpu: how near a training step on the CPU comes to the speed of its matrix products.
#include "adder/distributed/run.h"
#include "adder/kernels/matmul.h"
#include "adder/kernels/ssd/ssd.h"
#include "adder/autograd/gradient_check.h"
#include "adder/autograd/tape.h"
#include "adder/layers/language_model.h"
#include "adder/optim/adamw.h"
#include "adder/layers/language_model_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

using namespace adder;

struct Options {
  int64_t batch = 8, time = 512, steps = 5;
  layers::LanguageModelOptions model = {.layers = 8, .mixer = {.d_model = 512, .d_state = 64, .head_dim = 64}};
};

Flags flags(Options& o) {
  Flags flags("Trains on random tokens and prints tokens/s, model FLOP/s, the speed of SGEMM in the same process and "
              "their ratio.",
              "./adder bench train_cpu");
  flags.group("Benchmark");
  flags.add("batch", o.batch, "sequences a step", {.min = 1});
  flags.add("time", o.time, "tokens a sequence", {.min = 1});
  flags.add("steps", o.steps, "timed steps; the best counts", {.min = 1});
  add_flags(flags, o.model);
  return flags;
}

// Seconds of the fastest of `times` calls, after one that does not count.
template <class F>
double best_of(int64_t times, F&& f) {
  double best = 1e300;
  for (int64_t i = 0; i <= times; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    if (i > 0) best = std::min(best, taken.count());
  }
  return best;
}

double sgemm_flops() {
  const int64_t n = 2048;
  const Tensor a = random_normal({n, n}, 1, 1, 0, DType::f32), b = random_normal({n, n}, 2, 1, 0, DType::f32),
               c({n, n}, DType::f32);
  return 2.0 * static_cast<double>(n * n * n) / best_of(5, [&] { multiply({.a = a, .b = b, .c = c}); });
}

Batch random_batch(const Options& o) {
  const auto tokens = [&](uint64_t seed) {
    Tensor t({o.batch, o.time}, DType::i32);
    const Random random(seed, "tokens");
    for (int64_t i = 0; i < t.count(); ++i)
      t.data<int32_t>()[i] =
          static_cast<int32_t>(random.bits(static_cast<uint64_t>(i)) % static_cast<uint64_t>(o.model.vocabulary));
    return t;
  };
  return {.tokens = tokens(1), .targets = tokens(2), .document = zeros({o.batch, o.time}, DType::i32),
          .counted = o.batch * o.time, .scale = full({1}, 1 / static_cast<double>(o.batch * o.time), DType::f64),
          .position = from_host({2}, std::array<int32_t, 2>{0, 0})};
}

// Forward and backward of one layer's SSD alone, over the FLOPs of its products by the formula of kernels/ssd/ssd.h.
void print_ssd(const Options& o, double sgemm) {
  const auto& m = o.model.mixer;
  const Shape x{o.batch, o.time, m.heads(), m.head_dim}, B{o.batch, o.time, m.groups, m.d_state};
  const auto input = [](const Shape& shape, uint64_t seed, double scale = 1, double mean = 0) {
    return leaf(random_normal(shape, seed, scale, mean, DType::f32));
  };
  const Tensor xs = input(x, 1), dt = input({o.batch, o.time, m.heads()}, 2, 1, -4),
               A_log = input({m.heads()}, 3, 0.5, 1), b = input(B, 4), c = input(B, 5), D = input({m.heads()}, 6),
               dy = random_normal(x, 7, 1, 0, DType::f32);
  const double seconds = best_of(5, [&] {
    const Tensor y = apply(Ssd{.x = xs, .dt = dt, .A_log = A_log, .B = b, .C = c, .D = D, .chunk = m.chunk})[0];
    backward({&y, 1}, {&dy, 1});
  });
  const double P = static_cast<double>(m.head_dim), N = static_cast<double>(m.d_state),
               heads = static_cast<double>(m.heads());
  const double Q = static_cast<double>(m.chunk > 0 ? m.chunk : 64), groups = static_cast<double>(m.groups);
  const double forward = heads * (4 * P * N + 2 * Q * P) + groups * 2 * Q * N;
  const double backward = heads * (8 * P * N + 4 * Q * P) + groups * 6 * Q * N;
  const double flops = (forward + backward) * static_cast<double>(o.batch * o.time);
  fmt::print("SSD forward + backward  {:8.2f} ms   {:6.1f} GFLOP/s   {:.2f} x its FLOP floor at the speed of SGEMM\n",
             seconds * 1e3, flops / seconds / 1e9, seconds * sgemm / flops);
}

int main(int argc, char** argv) try {
  Options o;
  const Run run(argc, argv, flags(o), {.device = "cpu", .alone = true});
  const double sgemm = sgemm_flops();
  Params params(run.device(), {.seed = run.seed()});
  const layers::LanguageModel model(params, run.mesh(), o.model);
  AdamW optimizer(params);
  const Batch batch = random_batch(o);
  const double seconds = best_of(o.steps, [&] {
    backward(model.loss(batch));
    optimizer.step(1e-3);
  });
  const double per_token = o.model.training_flops();
  const double tokens = static_cast<double>(o.batch * o.time) / seconds;
  fmt::print("training step           {:8.1f} ms   {:.0f} tokens/s\n", seconds * 1e3, tokens);
  fmt::print("model                   {:6.1f} GFLOP/s   ({:.1f} MFLOP a token, {} parameters)\n",
             tokens * per_token / 1e9, per_token / 1e6, params.count());
  fmt::print("SGEMM 2048^3            {:6.1f} GFLOP/s\n", sgemm / 1e9);
  fmt::print("model / SGEMM           {:6.3f}\n", tokens * per_token / sgemm);
  print_ssd(o, sgemm);
} catch (...) {
  return adder::exit_status();
}
