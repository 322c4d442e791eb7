// logits: what a shared Mamba-2 checkpoint predicts for given tokens, as HDF5.
#include "adder/core/error.h"
#include "adder/data/file.h"
#include "adder/data/hugging_face.h"
#include "adder/data/tensor_file.h"
#include "adder/distributed/run.h"
#include "adder/kernels/view.h"

#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>

using namespace adder;

namespace {

struct Options {
  std::string model, tokens, out = "logits.h5";
  int64_t norm_groups = 0;
};

Flags flags(Options& o) {
  Flags flags(
      "Runs a Mamba-2 checkpoint (config.json and model.safetensors, of Hugging Face transformers or of the authors) "
      "over sequences of token ids, in fp32 unless told otherwise. Sequence N, the first being 0, gives the dataset "
      "/logits/N, [token, vocabulary].",
      "./adder logits --model ~/mamba2-130m --tokens ids.txt --out logits.h5");
  flags.add("model", o.model, "folder of the checkpoint", {.required = true});
  flags.add("tokens", o.tokens, "text file of token ids, a sequence a line; empty lines do not count",
            {.required = true});
  flags.add("out", o.out, "HDF5 file to write");
  flags.add("norm-groups", o.norm_groups,
            "groups of the gated norm; 0: those of B and C, but one if transformers before 5.23 wrote config.json",
            {.min = 0});
  return flags;
}

// Sequences of token ids, a line each.
std::vector<std::vector<int32_t>> read_sequences(const std::string& path, int64_t vocabulary) {
  std::ifstream file(path);
  check(file.is_open() && !std::filesystem::is_directory(path), "{}: cannot be read", path);
  std::vector<std::vector<int32_t>> sequences;
  int64_t number = 0;
  for (std::string line, word; std::getline(file, line);) {
    ++number;
    std::vector<int32_t> tokens;
    for (std::istringstream words(line); words >> word;) {
      int32_t token = -1;
      const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), token);
      check(error == std::errc() && end == word.data() + word.size() && token >= 0 && token < vocabulary,
            "{}:{}: \"{}\" is not a token id below {}", path, number, word, vocabulary);
      tokens.push_back(token);
    }
    if (!tokens.empty()) sequences.push_back(std::move(tokens));
  }
  check(!file.bad() && !sequences.empty(), "{}: has no token ids", path);
  return sequences;
}

}  // namespace

int main(int argc, char** argv) try {
  Options o;
  Run run(argc, argv, flags(o), {.dtype = "f32", .alone = true});
  layers::LanguageModelOptions options = hugging_face::read_options(o.model);
  if (o.norm_groups > 0) options.mixer.norm_groups = o.norm_groups;
  const auto sequences = read_sequences(o.tokens, options.vocabulary);
  Params params(run.device(), {.compute = run.dtype()});
  const layers::LanguageModel model(params, run.mesh(), options);
  hugging_face::read_weights(o.model, params, model);

  NoGrad none;
  TensorFileWriter file(o.out + ".partial");
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto time = static_cast<int64_t>(sequences[i].size());
    const Tensor logits = model.forward(from_host({1, time}, sequences[i], run.device()));
    file.write(fmt::format("logits/{}", i), contiguous(logits).reshape({time, options.vocabulary}));
  }
  file.close();
  publish(o.out + ".partial", o.out);
  run.say(fmt::format("{}: logits of {} sequences, {} parameters", o.out, sequences.size(), params.count()));
} catch (...) {
  return exit_status();
}
