// kernels: every kernel of the GPU beside its floor, at the shapes of Mamba-2 models and of published measurements.
#include "adder/autograd/tape.h"
#include "adder/bench/measure.h"
#include "adder/core/error.h"
#include "adder/distributed/run.h"
#include "adder/kernels/adamw.h"
#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/cross_entropy.h"
#include "adder/kernels/embedding.h"
#include "adder/kernels/gated_rms_norm.h"
#include "adder/kernels/rms_norm.h"
#include "adder/kernels/ssd/ssd.h"

using namespace adder;

namespace {

struct Options {
  std::string filter;
  int64_t repeats = 20;
};

Flags flags(Options& o) {
  Flags flags("Times each kernel of the GPU and prints its bytes, FLOPs, floor (the larger of bytes at the speed of a "
              "copy and FLOPs at that of a large bf16 product, both measured first) and time over floor; of a "
              "product also the time of cuBLASLt's best algorithm over ours.",
              "./adder bench kernels --filter Ssd");
  flags.group("Benchmark");
  flags.add("filter", o.filter, "only kernels whose line has this in its name");
  flags.add("repeats", o.repeats, "timed repeats, of which the median counts", {.min = 1});
  return flags;
}

double product(std::initializer_list<int64_t> sizes) {
  double result = 1;
  for (const int64_t n : sizes) result *= static_cast<double>(n);
  return result;
}

Tensor normal_f32(const Shape& shape, uint64_t seed, double scale = 1, double mean = 0) {
  return normal(shape, seed, scale, mean, DType::f32);
}
// A bf16 weight whose gradient is f32, as a model has it.
Tensor weight(const Shape& shape, uint64_t seed, double scale = 0.02) {
  return leaf(normal(shape, seed, scale), zeros(shape, DType::f32, Device::cuda));
}

// Forward and backward of an operator: `op` applies it and returns its outputs, of which all get a gradient.
void operator_lines(const Bench& bench, const std::string& title, const Costs& costs,
                    const std::vector<Tensor>& leaves, const std::function<std::vector<Tensor>()>& op) {
  bench.line(title + ", forward", costs.forward, [&] { op(); });
  std::vector<Tensor> y, dy;
  for (const Tensor& t : op()) dy.push_back(normal(t.shape(), dy.size(), 1, 0, t.dtype()));
  bench.line(
      title + ", backward", costs.backward,
      [&] {
        backward(y, dy);
        y.clear();
      },
      [&] {
        for (const Tensor& t : leaves) clear_gradient(t);
        y = op();
      });
  release_cached(Device::cuda);
}

// Ids of documents of 500 tokens, the rows of a batch one behind the other.
Tensor documents(int64_t batch, int64_t time) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < batch * time; ++i) ids.push_back(static_cast<int32_t>(i / 500));
  return to_device(from_host({batch, time}, ids), Device::cuda);
}

struct SsdShape {
  int64_t B, L, H, P, N, G;
  bool plain = false;     // no D and no dt_bias
  bool in_model = false;  // x, B and C and their gradients are parts of rows, as of the convolution's, with documents
};

void ssd(const Bench& bench, const SsdShape& s) {
  const auto [B, L, H, P, N, G, plain, in_model] = s;
  const std::string title = fmt::format("Ssd B{} L{} H{} P{} N{} G{}{}{}", B, L, H, P, N, G, plain ? ", no D" : "",
                                        in_model ? ", parts of rows, documents" : "");
  if (!bench.wants(title)) return;
  const Shape rows{B, L, H * P + 2 * G * N};
  const Tensor all = in_model ? normal(rows, 1) : Tensor(), all_gradients = in_model ? empty_like(all) : Tensor();
  const auto part = [&](int64_t begin, int64_t items, int64_t width, uint64_t seed) {
    const Shape shape{B, L, items, width};
    if (!in_model) return leaf(normal(shape, seed));
    const auto view = [&](const Tensor& t) { return t.slice_last(begin, begin + items * width).reshape(shape); };
    return leaf(view(all), view(all_gradients));
  };
  const Tensor x = part(0, H, P, 1), dt = leaf(normal({B, L, H}, 2, 1, -4));
  const Tensor b = part(H * P, G, N, 3), c = part(H * P + G * N, G, N, 4);
  const Tensor document = in_model ? documents(B, L) : Tensor();
  const Tensor A_log = leaf(normal_f32({H}, 5, 0.5, 1));
  const Tensor D = plain ? Tensor() : leaf(normal_f32({H}, 6)), bias = plain ? Tensor() : leaf(normal_f32({H}, 7, 0.1));
  std::vector<Tensor> leaves{x, dt, A_log, b, c};
  if (!plain) leaves.insert(leaves.end(), {D, bias});
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  const SsdSizes sizes{.tokens = product({B, L}), .heads = real(H), .head_dim = real(P), .state = real(N),
                       .groups = real(G)};
  operator_lines(bench, title, ssd_costs(sizes), leaves, [&] {
    return std::vector{apply(Ssd{.x = x, .dt = dt, .A_log = A_log, .B = b, .C = c, .D = D, .dt_bias = bias,
                                 .document = document})[0]};
  });
}

// If pitch > 0, x and its gradient are parts of rows that long, as of in_proj's output, and documents are given.
void conv(const Bench& bench, int64_t B, int64_t L, int64_t C, int64_t width, int64_t pitch = 0) {
  const std::string title = fmt::format("CausalConv1d B{} C{} L{} W{}{}", B, C, L, width,
                                        pitch > 0 ? fmt::format(" of {}, documents", pitch) : "");
  if (!bench.wants(title)) return;
  const auto part = [&](const Tensor& rows) { return pitch > 0 ? rows.slice_last(pitch - C, pitch) : rows; };
  const Shape rows{B, L, pitch > 0 ? pitch : C};
  const Tensor x = leaf(part(normal(rows, 1)), part(zeros(rows, DType::bf16, Device::cuda)));
  const Tensor document = pitch > 0 ? documents(B, L) : Tensor();
  const Tensor w = leaf(normal_f32({C, width}, 2, 0.5)), bias = leaf(normal_f32({C}, 3));
  operator_lines(bench, title, conv_costs(product({B, L, C})), {x, w, bias}, [&] {
    return std::vector{apply(CausalConv1d{.x = x, .weight = w, .bias = bias, .document = document})[0]};
  });
}

// In the residual stream: x and y bf16, the stream itself f32.
void rms_norm(const Bench& bench, int64_t rows, int64_t channels) {
  const std::string title = fmt::format("RmsNorm {} x {}, f32 residual", rows, channels);
  if (!bench.wants(title)) return;
  const Tensor x = leaf(normal({rows, channels}, 1)), residual = leaf(normal_f32({rows, channels}, 2));
  const Tensor w = leaf(normal_f32({channels}, 3, 0.1, 1));
  operator_lines(bench, title, norm_costs(product({rows, channels})), {x, residual, w}, [&] {
    const auto [y, s] = apply(RmsNorm{.x = x, .residual = residual, .weight = w});
    return std::vector{y, s};
  });
}

void gated_rms_norm(const Bench& bench, int64_t rows, int64_t channels) {
  const std::string title = fmt::format("GatedRmsNorm {} x {}", rows, channels);
  if (!bench.wants(title)) return;
  const Tensor y = leaf(normal({rows, channels}, 1)), z = leaf(normal({rows, channels}, 2));
  const Tensor w = leaf(normal_f32({channels}, 3, 0.1, 1));
  operator_lines(bench, title, gated_norm_costs(product({rows, channels})), {y, z, w}, [&] {
    return std::vector{apply(GatedRmsNorm{.y = y, .z = z, .weight = w})};
  });
}

void embedding(const Bench& bench, int64_t positions, int64_t vocabulary, int64_t channels) {
  const std::string title = fmt::format("Embedding {} of {} x {}", positions, vocabulary, channels);
  if (!bench.wants(title)) return;
  const Tensor table = weight({vocabulary, channels}, 1), t = tokens({positions}, 2, vocabulary);
  const Costs costs = embedding_costs(product({positions, channels}), product({vocabulary, channels}));
  operator_lines(bench, title, costs, {table}, [&] {
    return std::vector{apply(Embedding{.tokens = t, .weight = table})};
  });
}

// As in a training step: forward computes the gradients, backward hands them over.
void cross_entropy(const Bench& bench, int64_t count, int64_t d, int64_t vocabulary) {
  const std::string title = fmt::format("LinearCrossEntropy {} x {}, vocabulary {}", count, d, vocabulary);
  if (!bench.wants(title)) return;
  const Tensor x = leaf(normal({count, d}, 1)), w = weight({vocabulary, d}, 2), t = tokens({count}, 3, vocabulary);
  const Tensor scale = full({1}, 1 / static_cast<double>(count), DType::f64, Device::cuda);
  const double xs = product({count, d}), ws = product({vocabulary, d}), flops = 2 * product({count, d, vocabulary});
  operator_lines(bench, title, {{4 * xs + 6 * ws, 3 * flops}, {4 * xs + 8 * ws}}, {x, w}, [&] {
    return std::vector{apply(LinearCrossEntropy{.x = x, .weight = w, .targets = t, .scale = scale,
                                                .with_gradients = true})};
  });
}

// The passes over the logits of one part, without the products around them.
void softmax(const Bench& bench, int64_t count, int64_t vocabulary) {
  const std::string title = fmt::format("CrossEntropy of a part {} x {}", count, vocabulary);
  if (!bench.wants(title)) return;
  const Tensor logits = normal_f32({count, vocabulary}, 1, 2), t = tokens({count}, 2, vocabulary);
  const Tensor losses({count}, DType::f32, Device::cuda), lse = empty_like(losses);
  const Tensor dlogits(logits.shape(), DType::bf16, Device::cuda), dloss = full({1}, 1, DType::f32, Device::cuda);
  const double n = product({count, vocabulary});
  bench.line(title + ", forward", {4 * n}, [&] {
    on(Device::cuda, [&](auto backend) { cross_entropy_forward(backend, logits, t, 0, losses, lse); });
  });
  bench.line(title + ", backward", {6 * n}, [&] {
    on(Device::cuda, [&](auto backend) {
      cross_entropy_backward(backend, {.logits = logits, .dlogits = dlogits, .targets = t, .logsumexp = lse,
                                       .dloss = dloss, .scale = {}});
    });
  });
}

void adamw(const Bench& bench, int64_t count) {
  const std::string title = fmt::format("AdamW {} M parameters", count / 1'000'000);
  if (!bench.wants(title)) return;
  std::vector<double> controls(AdamWControls::size);
  controls[AdamWControls::max_norm] = 1;
  controls[AdamWControls::learning_rate] = 1e-4;
  const AdamWUpdate u{.parameter = normal_f32({count}, 1),
                      .gradient = normal_f32({count}, 2, 1e-4),
                      .exp_avg = normal_f32({count}, 3, 1e-4),
                      .exp_avg_sq = full({count}, 1e-8, DType::f32, Device::cuda),
                      .rounded = Tensor({count}, DType::bf16, Device::cuda),
                      .controls = from_host({AdamWControls::size}, controls, DType::f64, Device::cuda),
                      .weight_decay = 0.1};
  const Tensor squares = u.controls.slice_first(AdamWControls::squares, AdamWControls::squares + 1);
  const double n = static_cast<double>(count);
  bench.line(title + ", norm", {4 * n}, [&] {
    on(Device::cuda, [&](auto backend) {
      sum_of_squares(backend, {&u.gradient, 1}, squares);
      adamw_controls(backend, u.controls);
    });
  });
  bench.line(title + ", update", {30 * n}, [&] {
    on(Device::cuda, [&](auto backend) { adamw_update(backend, u); });
  });
}

// y = x Wᵀ and its two gradients, the weight's in f32.
void linear(const Bench& bench, const std::string& name, int64_t rows, int64_t in, int64_t out) {
  const std::string title = fmt::format("Matmul {} {} x {} to {}", name, rows, in, out);
  if (!bench.wants(title)) return;
  const Tensor x = normal({rows, in}, 1), w = normal({out, in}, 2, 0.02), dy = normal({rows, out}, 3);
  const Tensor y = empty_like(dy), dx = empty_like(x), dw({out, in}, DType::f32, Device::cuda);
  const LinearCosts costs =
      linear_costs(static_cast<double>(rows), static_cast<double>(in), static_cast<double>(out));
  bench.product_line(title + ", y", costs.y, {.a = x, .b = w, .c = y, .transpose_b = true});
  bench.product_line(title + ", dx", costs.dx, {.a = dy, .b = w, .c = dx});
  bench.product_line(title + ", dW", costs.dw, {.a = dy, .b = x, .c = dw, .transpose_a = true});
}

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  const Run run(argc, argv, flags(o), {.alone = true});
  check(gpu_count() > 0, "bench kernels: there is no GPU to measure");
  const Bench bench(o.filter, o.repeats);
  for (const int64_t groups : {1, 8}) ssd(bench, {8, 4096, 80, 64, 128, groups});
  ssd(bench, {1, 32768, 80, 64, 128, 1});
  ssd(bench, {32, 2048, 24, 64, 128, 1});
  ssd(bench, {.B = 32, .L = 2048, .H = 24, .P = 64, .N = 128, .G = 1, .in_model = true});
  ssd(bench, {8, 4096, 80, 64, 64, 1, true});
  ssd(bench, {32, 2048, 24, 64, 64, 1, true});
  conv(bench, 8, 4096, 5376, 4);
  conv(bench, 32, 2048, 1792, 4);
  conv(bench, 8, 2048, 4352, 4, 8512);
  conv(bench, 32, 2048, 1792, 4, 3352);
  for (const int64_t d : {768, 2048}) rms_norm(bench, 65536, d);
  for (const int64_t d : {1536, 4096}) gated_rms_norm(bench, 65536, d);
  embedding(bench, 65536, 50288, 768);
  cross_entropy(bench, 65536, 768, 50288);
  softmax(bench, 512, 50288);
  adamw(bench, 130'000'000);
  linear(bench, "130m in_proj", 65536, 768, 3352);
  linear(bench, "130m out_proj", 65536, 1536, 768);
  linear(bench, "1.3b in_proj", 16384, 2048, 8512);
  linear(bench, "1.3b out_proj", 16384, 4096, 2048);
  linear(bench, "head, a part of the logits", 512, 768, 50288);
  linear(bench, "head, a chunk of gradients", 4096, 768, 50288);
} catch (...) {
  return adder::exit_status();
}
