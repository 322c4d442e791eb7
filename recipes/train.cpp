// train: pretrain a Mamba-2 language model on text, resume it, validate it.
#include "adder/core/error.h"
#include "adder/data/checkpoint.h"
#include "adder/data/utf8_stream.h"
#include "adder/data/witten_bell.h"
#include "adder/distributed/machine.h"
#include "adder/distributed/run.h"
#include "adder/layers/generate.h"
#include "adder/layers/language_model_flags.h"
#include "adder/optim/schedule.h"
#include "adder/optim/training_memory.h"
#include "adder/optim/training_plan.h"
#include "adder/optim/training_step.h"
#include "adder/recipes/corpus.h"
#include "adder/recipes/validation.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numbers>

using namespace adder;
using layers::LanguageModel;

struct Options {
  std::vector<std::string> text = {};
  std::string data = "";
  double validation_share = 0.05, machine_text = 8.5;
  int64_t steps = 4'600, batch = 4, micro_batch = 4, time = 256;
  std::string schedule = "cosine";
  double learning_rate = 1e-2, final_learning_rate = 1e-5, warmup = 0.1, decay = 0.2;
  double beta1 = 0.9, beta2 = 0.95, weight_decay = 0.1, clip = 1;
  std::string graph = "auto";
  int64_t validation_tokens = 100'000, validation_time = 1'024, validation_context = 256;
  layers::LanguageModelOptions model = {.layers = 4, .mixer = {.d_model = 128, .d_state = 32, .head_dim = 32}};
};

Flags flags(Options& o) {
  Flags flags("Trains a Mamba-2 language model on text: yours (--text), or what is found on this machine. Bytes are "
              "its tokens. Ctrl-C saves; the same command goes on.",
              "./adder train --text ~/notes --steps 5000 --out runs/notes");
  flags.group("Text");
  flags.add("text", o.text, "folders, .jsonl[.zst] or text files; none: text found on this machine");
  flags.add("machine-text", o.machine_text, "MB of text found on this machine, at most",
            {.min = 0.1, .max = 1e6, .on_gpu = "40"});
  flags.add("data", o.data, "folder of the token shards train.h5 and validation.h5, made if missing; default: OUT/data",
            {.may_change = true});
  flags.add("validation-share", o.validation_share, "share of the documents kept for validation",
            {.min = 1e-6, .max = 0.9});
  flags.add("validation-tokens", o.validation_tokens, "tokens of the validations on the way; the last one takes all",
            {.min = 1, .may_change = true});
  flags.add("validation-time", o.validation_time, "tokens of a validation row", {.min = 1, .may_change = true});
  flags.add("validation-context", o.validation_context,
            "of these, the first ones that only give context (not at a document's start)",
            {.min = 0, .may_change = true});
  add_flags(flags, o.model, &o.learning_rate, "base");
  flags.group("Training");
  flags.add("steps", o.steps, "optimizer steps", {.min = 1, .on_gpu = "5000"});
  flags.add("batch", o.batch, "sequences a step", {.min = 1, .on_gpu = "32"});
  flags.add("micro-batch", o.micro_batch, "sequences a forward pass, at most; gradients add up",
            {.min = 1, .may_change = true, .on_gpu = "32"});
  flags.add("time", o.time, "tokens a sequence", {.min = 1, .on_gpu = "1024"});
  flags.add("learning-rate", o.learning_rate, "at its peak", {.min = 0});
  flags.add("final-learning-rate", o.final_learning_rate, "at the end", {.min = 0});
  flags.add("schedule", o.schedule, "how the rate falls", {.choices = {"cosine", "linear", "constant", "wsd"}});
  flags.add("warmup", o.warmup, "share of the steps in which the rate rises", {.min = 0, .max = 1});
  flags.add("decay", o.decay, "share of the steps in which a wsd schedule falls", {.min = 0, .max = 1});
  flags.add("beta1", o.beta1, "AdamW's", {.min = 0, .max = 0.999999});
  flags.add("beta2", o.beta2, "AdamW's", {.min = 0, .max = 0.999999});
  flags.add("weight-decay", o.weight_decay, "of matrices, not of A_log, D, dt_bias, norms and biases", {.min = 0});
  flags.add("clip", o.clip, "largest global norm of the gradients; 0: any", {.min = 0});
  flags.add("graph", o.graph, "on a GPU, a step is one CUDA graph; auto: if the model is small and the process alone",
            {.choices = graph_choices, .may_change = true});
  return flags;
}

Schedule schedule(const Options& o) {
  const auto share = [&](double part) {
    return static_cast<int64_t>(std::llround(part * static_cast<double>(o.steps)));
  };
  const int64_t warmup = share(o.warmup);
  const Schedule schedule{.kind = schedule_kind(o.schedule), .peak = o.learning_rate, .floor = o.final_learning_rate,
                          .warmup_steps = warmup, .steps = o.steps,
                          .decay_steps = std::min(share(o.decay), o.steps - warmup)};
  schedule.validate();
  return schedule;
}

void print_plan(const Options& o, const std::string& train_shard, Run& run) {
  const bool cuda = run.device() == Device::cuda;
  TrainingPlan plan{.model = o.model,
                    .micro_batch = {o.micro_batch, o.time, run.dtype(), run.device()},
                    .batch = o.batch,
                    .steps = o.steps,
                    .processes = run.mesh().data.size(),
                    .peak = run.peak(),
                    .memory = cuda ? gpu_memory() : machine_memory(),
                    .device_name = cuda ? gpu_name() : processor_name()};
  if (std::filesystem::exists(train_shard)) plan.training_tokens = TokenShard(train_shard).tokens();
  if (run.mesh().world.rank() == 0) run.say(describe(plan));
}

// How good the model became, on all held-out text, and a page by it.
void report(const LanguageModel& model, const Corpus& corpus, HeldOutOptions held_out, int64_t step, Run& run) {
  run.say("validating on all held-out text");
  held_out.tokens = 0;  // all
  const Validation v = validate(model, HeldOut(corpus.validation, held_out), run.mesh().data);
  std::vector<Logged> by_source = {{"validation_nats_per_byte", v.nats_per_byte}};
  for (const auto& [source, nats] : v.by_source) by_source.emplace_back("validation_nats_per_byte/" + source, nats);
  run.log(step, by_source);
  const double counts = witten_bell_bits_per_byte(TokenShard(corpus.train), TokenShard(corpus.validation), 5);
  run.say(fmt::format("validation: {:.4f} nats per byte, {:.4f} bits per byte (order-5 counts: {:.4f})",
                      v.nats_per_byte, v.nats_per_byte / std::numbers::ln2, counts));
  run.say("\nTexts by the model, from their first bytes:");
  const ByteTokenizer tokenizer;
  const Tensor start = from_host({1, 1}, std::vector<int32_t>{tokenizer.end_of_document()}, run.device());
  for (int64_t left = 1500, text = 0; left > 0; ++text) {  // bytes of a page
    const auto tokens = layers::generate(
        model, start, {.tokens = left, .end = tokenizer.end_of_document(),
                       .sampler = {.temperature = 0.8, .seed = run.seed() + static_cast<uint64_t>(text)}})[0];
    Utf8Stream utf8;
    run.say(utf8.add(tokenizer.decode(tokens)) + utf8.finish() + "\n");
    left -= static_cast<int64_t>(tokens.size());
  }
  run.say("the run is in " + run.folder() + "; more text: ./adder generate --run " + run.folder() +
          " --prompt 'The '");
}

int main(int argc, char** argv) try {
  Options o;
  Run run(argc, argv, flags(o), {.out = "runs/train", .validate_every = 500, .save_every = 500, .plans = true});
  check_usage(o.graph != "on" || (run.device() == Device::cuda && run.mesh().world.size() == 1),
              "--graph on: a step can be a CUDA graph in one process on a GPU");
  o.micro_batch = std::min(o.micro_batch, std::max<int64_t>(1, o.batch / run.mesh().data.size()));
  const Schedule rate = schedule(o);
  const ByteTokenizer tokenizer;
  o.model.vocabulary = tokenizer.vocabulary();
  const std::string folder = o.data.empty() ? run.folder() + "/data" : o.data;
  if (run.planning()) return print_plan(o, folder + "/train.h5", run), 0;
  const Corpus corpus =
      prepare_corpus(folder, o.text, o.validation_share, o.machine_text, o.data.empty() && run.fresh(), run);

  Params params(run.device(), {.seed = run.seed(), .compute = run.dtype()});
  const LanguageModel model(params, run.mesh(), o.model);
  AdamW optimizer(params, run.mesh(), {.beta1 = o.beta1, .beta2 = o.beta2, .weight_decay = o.weight_decay});
  TrainingStep step(model, optimizer, run.mesh(), {.clip = o.clip, .graph = o.graph});
  TokenFile data(corpus.train, run.mesh(),
                 {.batch = o.batch, .micro_batch = o.micro_batch, .time = o.time, .seed = run.seed(),
                  .tokenizer = tokenizer.name()});
  const HeldOutOptions held_out{.batch = o.micro_batch, .time = o.validation_time, .context = o.validation_context,
                          .tokens = o.validation_tokens, .tokenizer = tokenizer.name()};
  const HeldOut some(corpus.validation, held_out);
  Checkpoint checkpoint(run.folder(), {state(params), optimizer.state(), data.state()},
                        {.fresh = run.fresh(), .ranks = checkpoint_ranks(run.mesh().world)});  // resumes here

  if (const std::string slow = slow_on_gpu(o.model.mixer); run.dtype() == DType::bf16 && !slow.empty()) run.say(slow);
  run.say(fmt::format("{} parameters, {} training tokens, {:.2f} epochs", grouped(params.count()),
                      grouped(data.shard().tokens()),
                      static_cast<double>(o.steps * o.batch) / static_cast<double>(data.samples_per_epoch())));
  run.start({.step = data.step(), .steps = o.steps, .tokens_per_step = o.batch * o.time,
             .flops_per_token = o.model.training_flops()});
  const TrainingMemory memory(params, optimizer);
  const int64_t first = data.step() + 1;
  while (data.step() < o.steps && !run.stopping()) {
    const double learning_rate = rate(data.step());
    const auto [loss, norm] = step(data.next(), learning_rate);
    run.log(data.step(), {{"loss", loss},
                          {"grad_norm", norm},
                          {"learning_rate", learning_rate},
                          {"skipped", optimizer.skipped()}});
    check(optimizer.skipped_in_a_row() < 10,
          "step {}: the gradient was not finite ten times in a row, last with samples {} to {}; nothing is saved",
          data.step(), data.consumed_samples() - o.batch, data.consumed_samples() - 1);
    if (data.step() == first) run.log(data.step(), memory.parts());
    if (data.step() == first + 1 && !step.refused().empty()) run.say("steps are no CUDA graph: " + step.refused());
    if (run.should_validate(data.step()))
      run.log(data.step(), {{"validation_loss", validate(model, some, run.mesh().data).nats_per_token}});
    if (run.should_save(data.step())) checkpoint.save(data.step());
  }
  checkpoint.save(data.step());

  if (data.step() == o.steps) report(model, corpus, held_out, data.step(), run);  // not stopped
  run.finish();
  return 0;
} catch (...) {
  return adder::exit_status();
}
