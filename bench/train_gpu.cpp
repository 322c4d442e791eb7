// train_gpu: tokens/s, model FLOP/s and memory of a training step on random tokens, and where its time goes.
#include "adder/bench/measure.h"
#include "adder/bench/train_gpu/breakdown.h"
#include "adder/core/error.h"
#include "adder/core/later.h"
#include "adder/distributed/run.h"
#include "adder/layers/language_model_flags.h"
#include "adder/optim/training_memory.h"
#include "adder/optim/training_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

using namespace adder;

struct Options {
  int64_t batch = 32, micro_batch = 0, time = 2'048, steps = 20, warmup = 3;
  double peak = 989;
  bool breakdown = false;
  std::string graph = "auto";
  layers::LanguageModelOptions model = {.vocabulary = 50'277, .pad_vocabulary = 16};
};

Flags flags(Options& o) {
  Flags flags(
      "Trains on random tokens, by itself on the CPU too, and prints the median step, tokens/s, model FLOP/s and where "
      "the memory goes; with --breakdown also where the time goes, kernel by kernel, beside the least it could be.",
      "./adder bench train_gpu --size 130m --batch 32 --time 2048");
  flags.group("Benchmark");
  flags.add("batch", o.batch, "sequences a step, of each process", {.min = 1});
  flags.add("micro-batch", o.micro_batch, "sequences a forward pass; 0: all of them", {.min = 0});
  flags.add("time", o.time, "tokens a sequence", {.min = 1});
  flags.add("steps", o.steps, "timed steps", {.min = 1});
  flags.add("warmup", o.warmup, "steps before them", {.min = 1});
  flags.add("peak", o.peak, "TFLOP/s of which the share is printed: 989 is the dense bf16 peak of an H100 SXM or H200",
            {.min = 0.001});
  flags.add("breakdown", o.breakdown, "watch three more steps and print a table of their kernels");
  flags.add("graph", o.graph, "a step as one CUDA graph; auto: if the model is small and the process alone",
            {.choices = graph_choices});
  flags.add("vocabulary", o.model.vocabulary, "different tokens", {.min = 1});
  add_flags(flags, o.model);
  return flags;
}

// Random tokens on the device; one long document a row.
std::vector<Batch> batches(const Options& o, Device device, int64_t processes) {
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
                      .scale = full({1}, 1 / static_cast<double>(processes * o.batch * o.time), DType::f64),
                      .position = from_host({2}, std::array{0, static_cast<int32_t>(first)})};
    all.push_back(to_device(batch, device));
  }
  return all;
}

struct Timed {
  std::vector<double> seconds;  // of each step, sorted
  double queueing = 0;          // seconds to queue a step; longer where the GPU's queue is full
  double loss = 0;              // of the last one

  double median() const { return seconds[seconds.size() / 2]; }
};

// As in a recipe the host stays one step ahead of a GPU: a step ends when its loss arrives, while the next one runs.
// So there is one step more than is timed.
Timed timed(const Options& o, const std::function<Tensor()>& step) {
  Timed result;
  Later loss_before = 0.0;
  auto ended = std::chrono::steady_clock::now();
  for (int64_t i = 0; i <= o.warmup + o.steps; ++i) {
    const auto begun = std::chrono::steady_clock::now();
    const Later now(step());
    const std::chrono::duration<double> queueing = std::chrono::steady_clock::now() - begun;
    if (i > o.warmup) result.queueing += queueing.count() / static_cast<double>(o.steps);
    if (i > 0) result.loss = loss_before.value();
    const auto arrived = std::chrono::steady_clock::now();
    if (i > o.warmup) result.seconds.push_back(std::chrono::duration<double>(arrived - ended).count());
    ended = arrived;
    loss_before = now;
  }
  std::ranges::sort(result.seconds);
  return result;
}

// Tokens/s of one of the processes; so are FLOP/s, and what all reach is printed beside the former.
void print_speed(const Options& o, const Timed& t, const Params& params, int64_t processes) {
  const double median = t.median(), tokens = static_cast<double>(o.batch * o.time) / median;
  const double flops = o.model.training_flops(), total = tokens * flops / 1e12;
  fmt::print("step          {:10.2f} ms   median of {} ({:.2f} to {:.2f}); queued in {:.2f} ms\n", median * 1e3,
             t.seconds.size(), t.seconds.front() * 1e3, t.seconds.back() * 1e3, t.queueing * 1e3);
  fmt::print("tokens/s      {:>10}", grouped(static_cast<int64_t>(tokens)));
  if (processes > 1)
    fmt::print("      {} on {} processes", grouped(static_cast<int64_t>(tokens * static_cast<double>(processes))),
               processes);
  fmt::print("\n");
  fmt::print("model TFLOP/s {:10.1f}      {:.3f} GFLOP a token; {:.1f} % of {} TFLOP/s\n", total, flops / 1e9,
             100 * total / o.peak, o.peak);
  // As others count it: 6 for each parameter, a tied table once, and nothing for the SSD.
  const double six_n = 6 * static_cast<double>(params.count()) * tokens / 1e12;
  fmt::print("6N TFLOP/s    {:10.1f}      {:.1f} % of {} TFLOP/s\n", six_n, 100 * six_n / o.peak, o.peak);
}

void print_breakdown(const Options& o, DType type, double step_ms, const Params& params,
                     const std::function<Tensor()>& step) {
  constexpr int64_t steps = 3;
  const Watched watched{.activities = activities([&] {
                          for (int64_t i = 0; i < steps; ++i) step();
                        }),
                        .steps = steps,
                        .step_ms = step_ms,
                        .plain = o.model.mixer.rms_norm && o.model.d_intermediate == 0};
  check(!watched.activities.empty(), "train_gpu: CUPTI has seen no kernel in {} steps", steps);
  release_cached(Device::cuda);  // the room of the ceilings' operands
  const Ceilings ceilings(Stopwatch(20), type);
  const auto costs = step_costs(o.model, {.tokens = static_cast<double>(o.batch * o.time),
                                          .parameters = static_cast<double>(params.count()),
                                          .bf16 = type == DType::bf16});
  const auto floor = [&](const Cost& cost) { return ceilings.floor(cost); };
  const int64_t span = watched.activities.back().end - watched.activities.front().begin;
  fmt::print("\n{}\n--recompute {}; a watched step took {:.2f} ms, any other {:.2f}\n\n{}", ceilings.describe(type),
             layers::recompute_names[static_cast<size_t>(o.model.recompute)],
             static_cast<double>(span) / (1e6 * static_cast<double>(steps)), step_ms, breakdown(watched, costs, floor));
}

int main(int argc, char** argv) try {
  Options o;
  const Run run(argc, argv, flags(o));
  check(!o.breakdown || run.device() == Device::cuda, "train_gpu: --breakdown is of a GPU, and this runs on the CPU");
  const int64_t processes = run.mesh().world.size();
  check(!o.breakdown || processes == 1, "train_gpu: --breakdown is of one process, not of {}", processes);
  check(!o.breakdown || sees_activities(), "train_gpu: --breakdown needs CUPTI, a part of the CUDA toolkit that this "
                                           "build has not found");
  check(!o.breakdown || o.graph != "on", "train_gpu: --breakdown watches kernels queued one by one, not --graph on");
  if (o.breakdown) o.graph = "off";
  if (o.micro_batch == 0) o.micro_batch = o.batch;
  const Params params(run.device(), {.seed = run.seed(), .compute = run.dtype()});
  const layers::LanguageModel model(params, run.mesh(), o.model);
  AdamW optimizer(params, run.mesh());
  const auto data = batches(o, run.device(), processes);
  TrainingStep training_step(model, optimizer, run.mesh(), {.graph = o.graph});
  const TrainingMemory memory(params, optimizer);
  const auto step = [&] { return training_step(data, 1e-4).loss; };
  const Timed t = timed(o, step);
  if (run.mesh().world.rank() != 0) return 0;
  fmt::print("{}, {}; {} parameters, {} x {} tokens a step in {} micro-batches{}\n",
             run.device() == Device::cuda ? describe_gpu() : "CPU", name(run.dtype()), grouped(params.count()), o.batch,
             o.time, data.size(), training_step.is_graph() ? ", a CUDA graph" : "");
  if (!training_step.refused().empty()) fmt::print("steps are no CUDA graph: {}\n", training_step.refused());
  if (const std::string slow = slow_on_gpu(o.model.mixer); run.dtype() == DType::bf16 && !slow.empty())
    fmt::print("{}\n", slow);
  print_speed(o, t, params, processes);
  for (const Logged& part : memory.parts()) fmt::print("{:<20} {:6.2f} GiB\n", part.name, part.value.value());
  fmt::print("loss {:.4f} after {} steps on the same tokens\n", t.loss, o.warmup + o.steps);
  if (o.breakdown) print_breakdown(o, run.dtype(), t.median() * 1e3, params, step);
} catch (...) {
  return adder::exit_status();
}
