// train_gpu: tokens/s, model FLOP/s and memory of a training step on random tokens.
#include "adder/core/later.h"
#include "adder/distributed/run.h"
#include "adder/kernels/accumulate.h"
#include "adder/layers/language_model_flags.h"
#include "adder/optim/training_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

using namespace adder;

struct Options {
  int64_t batch = 32, micro_batch = 0, time = 2'048, steps = 20, warmup = 3;
  double peak = 989;
  layers::LanguageModelOptions model = {.vocabulary = 50'277, .pad_vocabulary = 16};
};

Flags flags(Options& o) {
  Flags flags(
      "Trains on random tokens, by itself on the CPU too, and prints the median step, tokens/s, model FLOP/s and where "
      "the memory goes.",
      "./adder bench train_gpu --size 130m --batch 32 --time 2048");
  flags.group("Benchmark");
  flags.add("batch", o.batch, "sequences a step", {.min = 1});
  flags.add("micro-batch", o.micro_batch, "sequences a forward pass; 0: all of them", {.min = 0});
  flags.add("time", o.time, "tokens a sequence", {.min = 1});
  flags.add("steps", o.steps, "timed steps", {.min = 1});
  flags.add("warmup", o.warmup, "steps before them", {.min = 1});
  flags.add("peak", o.peak, "TFLOP/s of which the share is printed: 989 is the dense bf16 peak of an H100 SXM or H200",
            {.min = 0.001});
  flags.add("vocabulary", o.model.vocabulary, "different tokens", {.min = 1});
  add_flags(flags, o.model);
  return flags;
}

// Random tokens on the device; one long document a row.
std::vector<Batch> batches(const Options& o, Device device) {
  const Random random(1, "tokens");
  uint64_t drawn = 0;
  std::vector<Batch> all;
  for (int64_t first = 0; first < o.batch; first += o.micro_batch) {
    const int64_t rows = std::min(o.micro_batch, o.batch - first);
    const auto tokens = [&] {
      const Tensor t({rows, o.time}, DType::i32);
      for (int64_t i = 0; i < t.count(); ++i)
        t.data<int32_t>()[i] = static_cast<int32_t>(random.bits(drawn++) % static_cast<uint64_t>(o.model.vocabulary));
      return t;
    };
    const Batch batch{.tokens = tokens(),
                      .targets = tokens(),
                      .document = zeros({rows, o.time}, DType::i32),
                      .counted = rows * o.time,
                      .scale = full({1}, 1 / static_cast<double>(o.batch * o.time), DType::f64),
                      .position = from_host({2}, std::array{0, static_cast<int32_t>(first)})};
    all.push_back(to_device(batch, device));
  }
  return all;
}

int main(int argc, char** argv) try {
  Options o;
  const Run run(argc, argv, flags(o));
  if (o.micro_batch == 0) o.micro_batch = o.batch;
  const Params params(run.device(), {.seed = run.seed(), .compute = run.dtype()});
  const layers::LanguageModel model(params, run.mesh(), o.model);
  AdamW optimizer(params, run.mesh());
  const auto data = batches(o, run.device());
  const TrainingMemory memory(params, optimizer);

  // As in a recipe the host stays one step ahead of a GPU: a step ends when its loss arrives, while the next one runs.
  // So there is one step more than is timed. To queue a step takes longer where the GPU's queue is full.
  std::vector<double> seconds;
  Later loss_before = 0.0;
  auto ended = std::chrono::steady_clock::now();
  double loss_value = 0, queueing = 0;
  for (int64_t step = 0; step <= o.warmup + o.steps; ++step) {
    const auto begun = std::chrono::steady_clock::now();
    Tensor loss = zeros({1}, DType::f32, run.device());
    for (const Batch& batch : data) loss += backward(model.loss(batch));
    optimizer.step(1e-4);
    const Later now(loss);
    if (step > o.warmup) queueing += std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    if (step > 0) loss_value = loss_before.value();
    const auto arrived = std::chrono::steady_clock::now();
    if (step > o.warmup) seconds.push_back(std::chrono::duration<double>(arrived - ended).count());
    ended = arrived;
    loss_before = now;
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2], tokens = static_cast<double>(o.batch * o.time) / median;
  const double flops = o.model.training_flops(), total = tokens * flops / 1e12;
  fmt::print("{}, {}; {} parameters, {} x {} tokens a step in {} micro-batches\n",
             run.device() == Device::cuda ? describe_gpu() : "CPU", name(run.dtype()), grouped(params.count()), o.batch,
             o.time, data.size());
  if (const std::string slow = slow_on_gpu(o.model.mixer); run.dtype() == DType::bf16 && !slow.empty())
    fmt::print("{}\n", slow);
  fmt::print("step          {:10.2f} ms   median of {} ({:.2f} to {:.2f}); queued in {:.2f} ms\n", median * 1e3,
             seconds.size(), seconds.front() * 1e3, seconds.back() * 1e3,
             queueing / static_cast<double>(o.steps) * 1e3);
  fmt::print("tokens/s      {:>10}\n", grouped(static_cast<int64_t>(tokens)));
  fmt::print("model TFLOP/s {:10.1f}      {:.3f} GFLOP a token; {:.1f} % of {} TFLOP/s\n", total, flops / 1e9,
             100 * total / o.peak, o.peak);
  // As others count it: 6 for each parameter, a tied table once, and nothing for the SSD.
  const double six_n = 6 * static_cast<double>(params.count()) * tokens / 1e12;
  fmt::print("6N TFLOP/s    {:10.1f}      {:.1f} % of {} TFLOP/s\n", six_n, 100 * six_n / o.peak, o.peak);
  for (const Logged& part : memory.parts()) fmt::print("{:<20} {:6.2f} GiB\n", part.name, part.value.value());
  fmt::print("loss {:.4f} after {} steps on the same tokens\n", loss_value, o.warmup + o.steps);
} catch (...) {
  return adder::exit_status();
}
