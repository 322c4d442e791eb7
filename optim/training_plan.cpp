#include "adder/optim/training_plan.h"

#include "adder/autograd/params.h"
#include "adder/core/memory.h"
#include "adder/distributed/mesh.h"
#include "adder/distributed/progress.h"
#include "adder/distributed/stop.h"
#include "adder/kernels/matmul.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

namespace adder {
namespace {

using layers::MicroBatch;
using layers::Recompute;

// Of a GPU's memory a part is the driver's, the kernels' code and what lies between blocks.
constexpr double usable = 0.94;

double gib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

// FLOP/s of large f32 products on the CPU.
double product_rate() {
  constexpr int64_t n = 1024;
  const Tensor a = full({n, n}, 0.5), b = full({n, n}, 0.5), c({n, n}, DType::f32);
  multiply({.a = a, .b = b, .c = c});  // wakes the threads
  const auto begun = std::chrono::steady_clock::now();
  double seconds = 0, products = 0;
  for (; seconds < 0.2; ++products) {
    multiply({.a = a, .b = b, .c = c});
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  }
  return products * 2.0 * n * n * n / seconds;
}

std::string_view name_of(Recompute r) { return layers::recompute_names[static_cast<size_t>(r)]; }

// What fits: smaller micro-batches, which cost next to nothing, before more recompute.
std::string advice(const TrainingPlan& plan, int64_t memory) {
  TrainingPlan other = plan;
  const double room = usable * static_cast<double>(memory);
  for (const Recompute r : {plan.model.recompute, Recompute::cheap, Recompute::scan, Recompute::block}) {
    if (r < plan.model.recompute) continue;
    other.model.recompute = r;
    for (int64_t rows = plan.micro_batch.rows; rows >= 1; rows = rows == 1 ? 0 : (rows + 1) / 2) {
      other.micro_batch.rows = rows;
      const MemoryPlan needed = planned_memory(other.model, other.micro_batch);
      const int64_t bytes = needed.total();
      if (static_cast<double>(bytes - needed.activations) > room)
        return "so are parameters, gradients and moments alone: take a smaller model";
      if (static_cast<double>(bytes) > room) continue;
      return fmt::format("--micro-batch {}{} takes {:.2f} GiB", rows,
                         r == plan.model.recompute ? "" : fmt::format(" --recompute {}", name_of(r)), gib(bytes));
    }
  }
  return "no --micro-batch and no --recompute makes it fit: take a smaller model or a shorter --time";
}

std::string memory_lines(const TrainingPlan& plan, const MemoryPlan& memory) {
  const MicroBatch& batch = plan.micro_batch;
  const auto line = [](const char* title, const char* what, int64_t bytes, std::string_view note) {
    return fmt::format("{:<12}{:<14}{:>8.2f} GiB{}{}\n", title, what, gib(bytes), note.empty() ? "" : "   ", note);
  };
  std::string text;
  text += line("memory", "parameters", memory.parameters, batch.dtype == DType::bf16 ? "f32 with bf16 copies" : "f32");
  text += line("", "gradients", memory.gradients, "");
  text += line("", "moments", memory.moments, "");
  text += line("", "activations", memory.activations,
               fmt::format("of {} x {} tokens, --recompute {}", batch.rows, grouped(batch.time),
                           name_of(plan.model.recompute)));
  const int64_t sharing = batch.device == Device::cuda ? 1 : plan.processes;  // every process has a GPU of its own
  const bool fits =
      plan.memory == 0 || static_cast<double>(memory.total() * sharing) <= usable * static_cast<double>(plan.memory);
  text += line("", "in all", memory.total(),
               fmt::format("{}{}", plan.processes > 1 ? "a process; " : "",
                           plan.memory > 0 ? fmt::format("the {} has {:.1f} GiB",
                                                         batch.device == Device::cuda ? "GPU" : "machine",
                                                         gib(plan.memory))
                                           : ""));
  if (!fits) text += fmt::format("{:<12}too much: {}\n", "", advice(plan, plan.memory / sharing));
  return text;
}

std::string time_line(const TrainingPlan& plan, double flops) {
  const bool cuda = plan.micro_batch.device == Device::cuda;
  if (cuda && plan.peak == 0) return "not known: --peak says how many TFLOP/s this GPU reaches at most\n";
  const double share = expected_utilisation(plan.micro_batch.device, plan.model.mixer.d_model);
  const double rate = cuda ? plan.peak : product_rate();
  const double seconds = flops / (rate * share);
  return fmt::format("about {}, if {:.0f} % of {} are made use of\n",
                     to_text(std::chrono::duration<double>(seconds)), 100 * share,
                     cuda ? fmt::format("{:.0f} TFLOP/s", rate / 1e12)
                          : fmt::format("the {:.0f} GFLOP/s that products have now", rate / 1e9));
}

}  // namespace

MemoryPlan planned_memory(const layers::LanguageModelOptions& model, const MicroBatch& batch) {
  const Params params(batch.device, {.dtype = batch.dtype == DType::bf16 ? DType::f32 : batch.dtype,
                                     .compute = batch.dtype, .sizes_only = true});
  const layers::LanguageModel sizes(params, Mesh{}, model);
  MemoryPlan plan{.count = params.count(), .activations = activation_bytes(model, batch)};
  const int64_t master = size_of(params.dtype()), copy = params.compute() != params.dtype() ? size_of(batch.dtype) : 0;
  for (const ParamBlock& block : params.blocks()) {
    plan.parameters += pooled_bytes(block.capacity * master) + (copy > 0 ? pooled_bytes(block.capacity * copy) : 0);
    plan.gradients += pooled_bytes(block.capacity * master);
    plan.moments += 2 * pooled_bytes(block.used * master);
  }
  return plan;
}

double expected_utilisation(Device device, int64_t d_model) {
  struct Measured {
    double width, share;
  };
  const auto [narrow, wide] = device == Device::cuda ? std::array{Measured{768, 0.30}, Measured{2048, 0.40}}
                                                     : std::array{Measured{128, 0.37}, Measured{512, 0.70}};
  const double between = std::log(static_cast<double>(d_model) / narrow.width) / std::log(wide.width / narrow.width);
  return narrow.share + (wide.share - narrow.share) * std::clamp(between, 0.0, 1.0);
}

std::string describe(const TrainingPlan& plan) {
  const MemoryPlan memory = planned_memory(plan.model, plan.micro_batch);
  const int64_t tokens = plan.steps * plan.batch * plan.micro_batch.time;
  const double flops = plan.model.training_flops(), all = flops * static_cast<double>(tokens);
  const std::string epochs =
      plan.training_tokens > 0
          ? fmt::format("{:.2f} epochs of {}", static_cast<double>(tokens) / static_cast<double>(plan.training_tokens),
                        grouped(plan.training_tokens))
          : "epochs not known: there is no corpus yet";
  return fmt::format("{:<12}{} in {}\n{:<12}{}\n", "device", plan.device_name, name(plan.micro_batch.dtype),
                     "parameters", grouped(memory.count)) +
         memory_lines(plan, memory) +
         fmt::format("{:<12}{}   {} steps of {} x {}; {}\n", "tokens", grouped(tokens), grouped(plan.steps),
                     grouped(plan.batch), grouped(plan.micro_batch.time), epochs) +
         fmt::format("{:<12}{:.3f} GFLOP a token, {:.3g} PFLOP in all\n{:<12}", "FLOPs", flops / 1e9, all / 1e15,
                     "time") +
         time_line(plan, all / static_cast<double>(plan.processes));
}

}  // namespace adder
