// generate: writes on from one or several prompts with a model that `train` trained.
#include "adder/data/restore.h"
#include "adder/data/saved_run.h"
#include "adder/data/tokenizer.h"
#include "adder/data/utf8_stream.h"
#include "adder/distributed/run.h"
#include "adder/layers/generate.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

using namespace adder;

namespace {

struct Options {
  std::string run, prompt_file;
  std::vector<std::string> prompt;
  int64_t tokens = 500;
  bool greedy = false;
  layers::SamplerOptions sampler = {.temperature = 0.8};
};

Flags flags(Options& o) {
  Flags flags("Writes on from a prompt with a trained model, and shows the text as it comes; of several prompts, which "
              "are written on side by side, the texts one after another. The same command writes the same text; "
              "another --seed writes another. --temperature, --top-k, --top-p and --min-p are applied in this order.",
              "./adder generate --run runs/train --prompt 'The purpose of' --tokens 200 --temperature 0.7");
  flags.group("Text");
  flags.add("run", o.run, "run folder of the model; otherwise the one in runs/ with the newest checkpoint");
  flags.add("prompt", o.prompt, "how the text begins, or several such; without one, the model begins a document");
  flags.add("prompt-file", o.prompt_file, "one, read from a file");
  flags.add("tokens", o.tokens, "bytes to write of each text, unless the document ends before", {.min = 0});
  flags.group("Choice of a token");
  flags.add("greedy", o.greedy, "always the most probable one");
  flags.add("temperature", o.sampler.temperature, "below 1 safer, above 1 wilder, 0: greedy", {.min = 0});
  flags.add("top-k", o.sampler.top_k, "one of so many most probable ones, 0: any", {.min = 0});
  flags.add("top-p", o.sampler.top_p, "one of the most probable ones that together reach this probability", {.max = 1});
  flags.add("min-p", o.sampler.min_p, "one with at least this share of the highest probability", {.min = 0, .max = 1});
  flags.add("repetition-penalty", o.sampler.repetition_penalty,
            "logits of what is already there are divided by this, or multiplied if negative; 1: none");
  return flags;
}

std::vector<std::string> prompts(const Options& o) {
  check_usage(o.prompt.empty() || o.prompt_file.empty(), "only one of --prompt and --prompt-file can begin the text");
  if (o.prompt_file.empty()) return o.prompt.empty() ? std::vector<std::string>{""} : o.prompt;
  std::ifstream file(o.prompt_file, std::ios::binary);
  std::ostringstream text;
  if (file.peek() != EOF) text << file.rdbuf();  // of nothing it would fail
  const bool is_read = file.is_open() && !file.bad() && !std::filesystem::is_directory(o.prompt_file);
  check(is_read, "--prompt-file {}: cannot be read", o.prompt_file);
  return {text.str()};
}

std::string run_folder(const Options& o) {
  const std::string folder = o.run.empty() ? newest_run("runs").value_or("") : o.run;
  check(!folder.empty(), "no run in runs/ has a checkpoint: train a model first, or name a run folder with --run");
  return folder;
}

void print(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  check(written, "the text cannot be written: {}", std::strerror(errno));
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// How fast it went.
struct Speed {
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  double to_first = 0, seconds = 0;
  int64_t count = 0;

  void token() {
    seconds = seconds_since(start);
    if (count++ == 0) to_first = seconds;
  }
  std::string text() const {
    std::string s;
    if (count > 0) s += fmt::format(": first token after {:.2g} s", to_first);
    if (count > 1) s += fmt::format(", then {:.0f} tokens/s", static_cast<double>(count - 1) / (seconds - to_first));
    return s;
  }
};

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  Run run(argc, argv, flags(o), {.alone = true});
  const std::vector<std::string> begin = prompts(o);
  if (o.greedy) o.sampler.temperature = 0;
  o.sampler.seed = run.seed();
  o.sampler.validate();

  const SavedRun saved = saved_run(run_folder(o));
  Params params(run.device(), {.compute = run.dtype()});
  const layers::LanguageModel model(params, run.mesh(), model_options(saved));
  const int64_t step = restore(saved.folder, {state(params)}).value();

  const ByteTokenizer tokenizer;
  layers::Texts tokens;
  for (const std::string& text : begin) {
    tokens.push_back(tokenizer.encode(text));
    tokens.back().insert(tokens.back().begin(), tokenizer.end_of_document());  // a document begins
  }
  Utf8Stream shown;
  print(shown.add(begin[0]));  // the first text comes as it is written, the others follow
  Speed speed;
  const layers::Texts added = layers::generate(
      model, tokens, {.tokens = o.tokens, .end = tokenizer.end_of_document(), .sampler = o.sampler},
      [&](int64_t sequence, int32_t token) {
        speed.token();
        if (sequence == 0) print(shown.add(tokenizer.decode({&token, 1})));
      });
  print(shown.finish() + "\n");
  for (size_t i = 1; i < begin.size(); ++i) {
    Utf8Stream text;
    print("\n" + text.add(begin[i] + tokenizer.decode(added[i])) + text.finish() + "\n");
  }
  const bool ended = static_cast<int64_t>(added[0].size()) < o.tokens && begin.size() == 1;
  fmt::print(stderr, "{} at step {}{}{}\n", saved.folder, grouped(step), speed.text(),
             ended ? "; the document ended" : "");
} catch (...) {
  return exit_status();
}
