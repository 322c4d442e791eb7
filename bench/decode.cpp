// decode: time to the first token and time a token of greedy decoding, beside what its bytes must take.
#include "adder/core/later.h"
#include "adder/core/timer.h"
#include "adder/distributed/run.h"
#include "adder/layers/decoder.h"
#include "adder/layers/generate.h"
#include "adder/layers/language_model_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>

using namespace adder;
using Clock = std::chrono::steady_clock;

namespace {

struct Options {
  std::vector<std::string> batch = {"1", "64"};
  int64_t prompt = 128, tokens = 100, warmup = 10;
  layers::LanguageModelOptions model = {.vocabulary = 50'277, .pad_vocabulary = 16};
};

Flags flags(Options& o) {
  Flags flags("Decodes with random weights, each step as one CUDA graph and kernel by kernel, and prints the median "
              "time between two tokens. The floor is the time to copy as many bytes as a step reads and writes: the "
              "weights once, and every sequence's states twice.",
              "./adder bench decode --size 130m --batch 1 64");
  flags.group("Benchmark");
  flags.add("batch", o.batch, "sequences beside each other, one or several numbers of them");
  flags.add("prompt", o.prompt, "tokens of each prompt", {.min = 1});
  flags.add("tokens", o.tokens, "tokens that are timed", {.min = 1});
  flags.add("warmup", o.warmup, "tokens before them", {.min = 2});
  flags.add("vocabulary", o.model.vocabulary, "different tokens", {.min = 1});
  add_flags(flags, o.model);
  return flags;
}

int64_t number(const std::string& text) {
  int64_t n = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), n);
  check_usage(fault == std::errc() && end == text.data() + text.size() && n > 0,
              "--batch: {} is no number of sequences", text);
  return n;
}

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> times) {
  std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
  return times[times.size() / 2];
}

layers::Texts random_prompts(int64_t batch, const Options& o) {
  const Random random(1, "prompts");
  layers::Texts prompts(static_cast<size_t>(batch), std::vector<int32_t>(static_cast<size_t>(o.prompt)));
  uint64_t drawn = 0;
  for (auto& prompt : prompts)
    for (int32_t& token : prompt)
      token = static_cast<int32_t>(random.bits(drawn++) % static_cast<uint64_t>(o.model.vocabulary));
  return prompts;
}

// Bytes a millisecond of a large copy, read and written.
double bandwidth() {
  const Tensor from({int64_t{1} << 28}, DType::f32, Device::cuda), to = empty_like(from);
  fill(from, 1);
  Timer timer;
  for (int i = 0; i < 12; ++i) {
    if (i >= 2) timer.start();
    copy(from, to);
    if (i >= 2) timer.stop();
  }
  return 8.0 * static_cast<double>(from.count()) / median(timer.milliseconds());
}

struct Bytes {
  double weights = 0, states = 0;
};

// What a step moves at least: all weights but the embedding's table where the output has another one, and the states.
Bytes bytes_of(const Params& params, const layers::LanguageModel& model, const layers::LanguageModel::State& state) {
  Bytes bytes;
  for (const Param& p : params.all())
    if (model.options.tied || p.name != "embedding/weight")
      bytes.weights += static_cast<double>(p.value.count() * size_of(p.tensor.dtype()));
  for (const layers::Mamba2State& s : state)
    for (const Tensor& t : {s.conv, s.ssm}) bytes.states += 2.0 * static_cast<double>(t.count() * size_of(t.dtype()));
  return bytes;
}

// The median time between two tokens as the host sees them, which reads one while the next one is computed.
double time_a_token(layers::Decoder& decoder, const Options& o) {
  std::vector<double> times;
  std::function<Tensor()> next = later(decoder.token());
  Clock::time_point before = Clock::now();
  for (int64_t i = 0; i < o.warmup + o.tokens; ++i) {
    decoder.step();
    std::function<Tensor()> after = later(decoder.token());
    next();
    if (i >= o.warmup) times.push_back(milliseconds_since(before));
    before = Clock::now();
    next = std::move(after);
  }
  next();
  return median(times);
}

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  const Run run(argc, argv, flags(o), {.alone = true});
  const Device device = run.device();
  const Params params(device, {.seed = run.seed(), .compute = run.dtype()});
  const layers::LanguageModel model(params, run.mesh(), o.model);
  const double rate = device == Device::cuda ? bandwidth() : 0;
  release_cached(device);
  fmt::print("{}, {}; {} parameters; prompts of {} tokens, median of {} tokens\n",
             device == Device::cuda ? describe_gpu() : "CPU", name(run.dtype()), grouped(params.count()), o.prompt,
             o.tokens);
  if (rate > 0) fmt::print("copy {:.2f} TB/s (read + written)\n", rate / 1e9);
  fmt::print("{:>6} {:>12} {:>12} {:>12} {:>11} {:>11} {:>11} {:>9} {:>8}\n", "batch", "first, ms", "kernels, ms",
             "graph, ms", "tokens/s", "weights, MB", "states, MB", "floor, ms", "x floor");
  for (const std::string& text : o.batch) {
    const int64_t batch = number(text);
    const layers::Texts prompts = random_prompts(batch, o);
    double first = 0, times[2] = {0, 0};
    Bytes bytes;
    std::string why;
    for (const bool as_graph : {false, true}) {  // the first prefill warms up
      synchronize();
      const auto start = Clock::now();
      layers::Prefilled prefilled = layers::prefill(model, prompts);
      bytes = bytes_of(params, model, prefilled.state);
      layers::Decoder decoder(model, std::move(prefilled.state), prefilled.logits);
      later(decoder.token())();
      first = milliseconds_since(start);
      if (!as_graph) decoder.stay_eager();
      times[as_graph] = time_a_token(decoder, o);
      if (as_graph) why = decoder.eager_because();
    }
    const double floor = rate > 0 ? (bytes.weights + bytes.states) / rate : 0;
    fmt::print("{:>6} {:12.2f} {:12.3f} {:12.3f} {:>11} {:11.1f} {:11.1f}", batch, first, times[0], times[1],
               grouped(static_cast<int64_t>(1e3 * static_cast<double>(batch) / times[1])), bytes.weights / 1e6,
               bytes.states / 1e6);
    if (rate > 0) fmt::print(" {:9.3f} {:8.2f}", floor, times[1] / floor);
    fmt::print("\n");
    if (!why.empty()) fmt::print("no graph: {}\n", why);
    std::fflush(stdout);
  }
} catch (...) {
  return adder::exit_status();
}
