#include "adder/distributed/run.h"

#include "adder/core/cpu.h"
#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/distributed/curve.h"
#include "adder/distributed/gpus.h"
#include "adder/distributed/machine.h"
#include "adder/distributed/nccl.h"
#include "adder/distributed/peak.h"
#include "adder/kernels/matmul.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

namespace adder {
namespace {

// A command line that can be pasted into a shell.
std::string shell_words(int argc, const char* const* argv) {
  constexpr auto plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./,:+@%";
  std::string line;
  for (int i = 0; i < argc; ++i) {
    const std::string word = argv[i];
    if (i > 0) line += ' ';
    if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

// Why this process cannot compute on a GPU; empty if it can.
std::string gpu_hindrance(bool several, const GpuShares& shares) {
  if (!built_with_cuda) return "this adder was built without CUDA";
  if (gpu_count() == 0) return "no GPU answers" + (gpu_fault().empty() ? "" : ": " + gpu_fault());
  if (several && !built_with_nccl) return "this adder was built without NCCL, so only one process computes on a GPU";
  return shares.shortage;
}

double value_of(const NamedNumbers& numbers, std::string_view name) {
  for (const auto& [key, value] : numbers)
    if (key == name) return value;
  return Standing::unknown;
}

bool has(const NamedNumbers& numbers, std::string_view name) {
  return std::any_of(numbers.begin(), numbers.end(), [&](const auto& pair) { return pair.first == name; });
}

Series series(std::string name, const std::vector<std::pair<double, double>>& points) {
  Series s{.name = std::move(name)};
  for (const auto& [x, y] : points) {
    s.x.push_back(x);
    s.y.push_back(y);
  }
  return s;
}

}  // namespace

Run::Run(int argc, const char* const* argv, Flags flags, RunOptions options)
    : recipe_(argc > 0 ? std::filesystem::path(argv[0]).filename().string() : ""),
      command_(shell_words(argc, argv)),
      options_(std::move(options)),
      flags_(std::move(flags)),
      mesh_(Communicator::world()),
      progress_(stdout) {
  add_flags();
  flags_.parse(argc, argv);
  check_usage(!options_.alone || mesh_.world.size() == 1, "{} is the work of one process, and {} were started", recipe_,
              mesh_.world.size());
  std::chrono::duration<double> limit{0};
  try {
    if (!options_.time_limit.empty()) limit = parse_duration(options_.time_limit);
  } catch (const Error& error) {
    check_usage(false, "--time-limit: {}", error.what());
  }
  check_processor();
  choose_device();
  const bool keeps_folder = !options_.out.empty() && !plan_, first = mesh_.world.rank() == 0;
  if (keeps_folder && first) folder_.emplace(options_.out);
  settle_defaults();
  set_threads();
  if (options_.peak == 0 && device() == Device::cuda)
    options_.peak = peak_flops(gpu_name(), dtype(), options_.tf32) / 1e12;
  if (!keeps_folder) return;
  if (first) check_saved();
  stop_.emplace(first ? options_.out + "/stop" : "", limit);
}

Run::~Run() {
  try {
    write_pending();
  } catch (...) {  // the run ends because of something else
  }
}

void Run::add_flags() {
  const bool keeps_folder = !options_.out.empty();
  flags_.group("Run");
  if (keeps_folder) {
    flags_.runs_go_on();
    flags_.add("out", options_.out, "the run folder: checkpoints, metrics.jsonl, run.json, loss.svg, "
               "tokens_per_second.svg", {.may_change = true});
    flags_.add("fresh", options_.fresh,
               "start anew: an earlier run's checkpoints move to checkpoints.1, its metrics go", {.may_change = true});
    flags_.add("time-limit", options_.time_limit,
               "stop and save after this time: minutes (90) or 1h30m; saving comes on top", {.may_change = true});
    flags_.add("save-every", options_.save_every, "steps between checkpoints, 0: only at the end",
               {.min = 0, .may_change = true});
    flags_.add("validate-every", options_.validate_every, "steps between validations, 0: only at the end",
               {.min = 0, .may_change = true});
  }
  if (options_.plans)
    flags_.add("plan", plan_, "say what it would take (parameters, memory, FLOPs, time) and end: nothing is written",
               {.may_change = true});
  flags_.add("seed", options_.seed, "seed of initial values, data order and sampling", {.min = 0});
  flags_.add("threads", options_.threads,
             "processor threads of a process, 0: every core it may use, shared among those that may use the same",
             {.min = 0, .max = 1024, .may_change = true});
  flags_.add("device", options_.device,
             options_.device.empty() ? "where to compute; otherwise on GPUs, if there is one for each process"
                                     : "where to compute",
             {.choices = {"cpu", "cuda"}, .may_change = true});
  flags_.add("dtype", options_.dtype,
             options_.dtype.empty() ? "of activations and products; otherwise bf16 on a GPU, f32 on the CPU"
                                    : "of activations and products; bf16 on a GPU alone",
             {.choices = {"f32", "bf16"}, .may_change = true});
  flags_.add("tf32", options_.tf32, "let a GPU round the factors of f32 products to TF32", {.may_change = true});
  if (flags_.have_gpu_defaults())
    flags_.add("defaults", options_.defaults, "whose defaults, where a GPU has its own; otherwise those of the device "
               "that the run began on", {.choices = {"cpu", "gpu"}, .may_change = true});
  if (keeps_folder)
    flags_.add("peak", options_.peak, "TFLOP/s that the device reaches at most, for model_flops_utilisation in the "
               "log; 0: the data sheet's, if the GPU is a known one", {.min = 0, .may_change = true});
}

void Run::choose_device() {
  // Only what the user asked for is refused; what the program would rather have gives way. Several processes, whose
  // hosts may have GPUs or not, choose alike.
  const bool several = mesh_.world.size() > 1, asked = device() == Device::cuda && flags_.given("device");
  if (asked || options_.device != "cpu") {
    const GpuShares shares = several ? share_gpus(mesh_.world) : GpuShares{};
    const std::string hindrance = gpu_hindrance(several, shares);
    check_usage(!asked || hindrance.empty(), "--device cuda: {}{}", hindrance,
                hindrance == shares.shortage ? "; start as many processes as GPUs, or --device cpu" : "");
    const bool gpus = several ? !shares.own.empty() : gpu_count() > 0;
    options_.device = gpus ? "cuda" : "cpu";
    if (!gpus && (gpu_count() > 0 || !gpu_fault().empty())) say("computing on the CPU: " + hindrance);
    if (gpus && several) {
      choose_gpu(shares.own[static_cast<size_t>(mesh_.world.rank())]);
      say(shares.text);
    }
  }
  if (device() == Device::cuda) compute_stream();  // opens the GPU: what is wrong with it is said now
  const bool bf16_here = dtype() == DType::f32 || device() == Device::cuda;
  check_usage(bf16_here || !flags_.given("dtype"), "--dtype bf16 needs a GPU: the CPU computes in f32");
  if (options_.dtype.empty()) options_.dtype = device() == Device::cuda ? "bf16" : "f32";
  if (!bf16_here) options_.dtype = "f32";
  allow_tf32(options_.tf32);
}

void Run::set_threads() {
  const std::string place = host_name() + " " + affinity();
  const auto places = mesh_.world.exchange(place);
  const int64_t sharing = std::count(places.begin(), places.end(), place);
  const int64_t cores = allowed_cores(), threads = options_.threads > 0 ? options_.threads : default_threads(sharing);
  if (threads * sharing > std::max(cores, sharing))
    say(fmt::format("warning: {}{} threads on {} allowed core{}; this is slower than --threads {}{}",
                    sharing > 1 ? fmt::format("{} ranks x ", sharing) : "", threads, cores, cores == 1 ? "" : "s",
                    std::max<int64_t>(1, cores / sharing),
                    mesh_.world.size() > 1 ? " (are the ranks bound? mpirun wants --bind-to none)" : ""));
  const double load = host_load();
  const bool spin = threads > 1 && device() == Device::cpu && std::getenv("OMP_WAIT_POLICY") == nullptr;
  if (spin && overloaded(load, host_cores()))
    say(fmt::format("warning: this machine is busy: {:.1f} processes want its {} cores. Threads that spin while they "
                    "wait for each other then lose most of their time; with OMP_WAIT_POLICY=passive they sleep",
                    load, host_cores()));
  omp_set_num_threads(static_cast<int>(threads));
  options_.threads = threads;
}

// A run keeps the defaults that it began with, wherever it goes on.
void Run::settle_defaults() {
  if (!flags_.have_gpu_defaults()) return;
  if (options_.defaults.empty()) {
    std::string saved;
    const bool goes_on = mesh_.world.rank() == 0 && !options_.out.empty() && !options_.fresh &&
                         RunFolder::has_checkpoint(options_.out);  // or would, were it no plan
    if (goes_on) {
      const Json options = Json::parse_or_null(RunFolder::saved(options_.out).second);
      const Json* const before = options.find("defaults");
      saved = before && before->is_string() ? before->string() : "cpu";
    }
    saved = mesh_.world.exchange(saved)[0];
    options_.defaults = !saved.empty() ? saved : device() == Device::cuda ? "gpu" : "cpu";
  }
  if (options_.defaults == "gpu") flags_.use_gpu_defaults();
}

void Run::check_saved() {
  if (options_.fresh || !RunFolder::has_checkpoint(options_.out)) return;
  const auto [recipe, saved] = RunFolder::saved(options_.out);
  if (recipe.empty()) return;
  check_usage(recipe == recipe_, "run folder {} holds a run of {}, not of {}; choose another --out", options_.out,
              recipe, recipe_);
  std::string changes;
  for (const FlagDifference& d : flags_.differences(saved))
    changes += fmt::format("{}--{} was {} and is now {}", changes.empty() ? "" : ", ", d.name, d.saved, d.now);
  check_usage(changes.empty(), "the run in {} cannot go on with other flags: {}; give the old value, another --out, or "
              "--fresh to start anew", options_.out, changes);
  for (const FlagDifference& d : flags_.differences(saved, true))
    if (!d.saved.empty() && (d.name == "device" || d.name == "dtype" || d.name == "tf32"))
      changes_ += fmt::format(", with --{} {} instead of {}", d.name, d.now, d.saved);
}

void Run::start(const RunStart& start) {
  start_ = start;
  step_ = start.step;
  last_step_ = next_drawing_ = Clock::now();
  const int64_t processes = mesh_.world.size();
  say(device() == Device::cuda
          ? fmt::format("computing on {}{} in {}{}", processes > 1 ? fmt::format("{} GPUs, ", processes) : "",
                        gpu_name(), name(dtype()),
                        peak() > 0 ? fmt::format(", peak {:.4g} TFLOP/s", options_.peak) : "")
          : fmt::format("computing on the CPU in {}, {}{} thread{}", name(dtype()),
                        processes > 1 ? fmt::format("{} processes of ", processes) : "", options_.threads,
                        options_.threads == 1 ? "" : "s"));
  if (!folder_) return;
  std::vector<std::string> devices{fmt::format("cpu: {}, {} cores", processor_name(), allowed_cores())};
  if (device() == Device::cuda) devices.insert(devices.begin(), "cuda: " + describe_gpu());
  folder_->start({.recipe = recipe_,
                  .command = command_,
                  .options = flags_.to_json(),
                  .devices = devices,
                  .seed = options_.seed,
                  .step = start.step,
                  .threads = options_.threads,
                  .ranks = mesh_.world.size(),
                  .peak_tflops = options_.peak});
  loss_ = folder_->history("loss");
  validation_loss_ = folder_->history("validation_loss");
  speed_ = folder_->history("tokens_per_second");
  starts_ = folder_->starts();
  if (start.step > 0) say(fmt::format("going on from step {} in {}{}", grouped(start.step), options_.out, changes_));
}

bool Run::stopping() {
  if (cause_ == StopCause::none && stop_) {
    const Tensor cause = from_host({1}, std::vector<int32_t>{static_cast<int32_t>(stop_->cause())});
    mesh_.world.all_reduce(cause, Reduce::max);
    cause_ = static_cast<StopCause>(*cause.data<int32_t>());
  }
  if (cause_ != StopCause::none) write_pending();
  return cause_ != StopCause::none;
}

bool Run::due(int64_t step, int64_t every) {
  const bool now = every > 0 && step % every == 0;
  if (now) write_pending();
  return now;
}

void Run::log(int64_t step, std::vector<Logged> values) {
  write_pending();
  if (mesh_.world.rank() != 0) return;
  const bool here = std::all_of(values.begin(), values.end(), [](const Logged& l) { return l.value.here(); });
  pending_.emplace(step, std::move(values));
  if (here || step >= start_.steps) write_pending();
}

void Run::write_pending() {
  if (!pending_) return;
  const auto [step, values] = *std::exchange(pending_, std::nullopt);
  NamedNumbers numbers;
  for (const Logged& logged : values) numbers.emplace_back(logged.name, logged.value.value());
  if (has(numbers, "loss")) {
    log_step(step, numbers);
  } else {
    std::string line = fmt::format("step {}", grouped(step));
    for (const auto& [name, value] : numbers) line += fmt::format("  {} {:.6g}", name, value);
    say(line);
  }
  if (has(numbers, "validation_loss")) validation_loss_.emplace_back(step, value_of(numbers, "validation_loss"));
  if (!folder_) return;
  folder_->append(step, numbers);
  if (const auto now = Clock::now(); now >= next_drawing_) {
    draw();
    next_drawing_ = now + std::chrono::seconds(15);
  }
}

void Run::log_step(int64_t step, NamedNumbers& numbers) {
  const auto now = Clock::now();
  const int64_t done = std::max<int64_t>(1, step - step_);
  const double seconds = std::chrono::duration<double>(now - last_step_).count() / static_cast<double>(done);
  pace_.add(seconds);
  last_step_ = now;
  step_ = step;
  const double speed = static_cast<double>(start_.tokens_per_step) / std::max(seconds, 1e-9);
  const double flops = start_.flops_per_token / (std::max(peak(), 1.0) * static_cast<double>(mesh_.world.size()));
  const bool utilised = flops > 0 && peak() > 0;
  if (start_.tokens_per_step > 0) {
    numbers.emplace_back("tokens_per_second", speed);
    if (utilised) numbers.emplace_back("model_flops_utilisation", speed * flops);
    speed_.emplace_back(step, speed);
  }
  const double pace = std::max(pace_.seconds_per_step(), 1e-9);
  Standing standing{.step = step, .steps = start_.steps, .loss = value_of(numbers, "loss"),
                    .grad_norm = value_of(numbers, "grad_norm"), .learning_rate = value_of(numbers, "learning_rate")};
  if (start_.tokens_per_step > 0) standing.tokens_per_second = static_cast<double>(start_.tokens_per_step) / pace;
  if (utilised) standing.utilisation = standing.tokens_per_second * flops;
  standing.seconds_left = static_cast<double>(std::max<int64_t>(0, start_.steps - step)) * pace;
  progress_.show(standing);
  loss_.emplace_back(step, standing.loss);
}

void Run::say(std::string_view line) {
  if (mesh_.world.rank() != 0) return;
  write_pending();
  progress_.say(line);
  last_step_ = Clock::now();  // what led to this line, a validation for one, is no part of the next step
}

void Run::draw() const {
  Series raw = series("", loss_), mean = series("training", loss_), held_out = series("validation", validation_loss_);
  raw.mark = Mark::faint;
  mean.y = smoothed(raw.y, std::max<int64_t>(1, static_cast<int64_t>(raw.y.size()) / 50));
  held_out.mark = Mark::points;
  held_out.colour = 1;
  if (validation_loss_.empty()) held_out.name.clear();
  const std::string title = std::filesystem::path(options_.out).filename().string();
  folder_->write("loss.svg", svg({.title = title,
                                  .x = {.label = "step"},
                                  .y = {.label = "loss [nats]", .log = true},
                                  .series = {std::move(raw), std::move(mean), std::move(held_out)},
                                  .marks = starts_}));
  if (speed_.empty()) return;
  Series steps = series("", speed_), pace = series("", speed_);
  steps.mark = Mark::faint;
  pace.y = smoothed(steps.y, std::max<int64_t>(1, static_cast<int64_t>(steps.y.size()) / 50));
  folder_->write("tokens_per_second.svg", svg({.title = title,
                                               .x = {.label = "step"},
                                               .y = {.label = "tokens/s"},
                                               .series = {std::move(steps), std::move(pace)},
                                               .marks = starts_}));
}

void Run::finish() {
  write_pending();
  if (folder_) draw();
  if (cause_ == StopCause::none) return;
  say(fmt::format("stopped by {} after step {} of {}; the same command{} goes on from there", name(cause_),
                  grouped(step_), grouped(start_.steps), options_.fresh ? " without --fresh" : ""));
}

}  // namespace adder
