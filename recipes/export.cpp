// export: a trained model as config.json and model.safetensors, for Hugging Face transformers or the authors' code.
#include "adder/data/hugging_face.h"
#include "adder/data/restore.h"
#include "adder/data/saved_run.h"
#include "adder/distributed/run.h"

using namespace adder;

namespace {

struct Options {
  std::string run, out, form = "transformers";
};

Flags flags(Options& o) {
  Flags flags("Writes the weights of a run's newest checkpoint as others read them: the fp32 masters, bit for bit. "
              "Token ids are bytes, and 256 is the end of a document. A model trained with --norm-groups 1 and several "
              "--groups is what transformers before 5.23 computes, and config.json names such a version.",
              "./adder export --run runs/train --out exported");
  flags.add("run", o.run, "run folder of the model", {.required = true});
  flags.add("out", o.out, "folder to write, which may not hold a model yet", {.required = true});
  flags.add("form", o.form, "whose names and fields", {.choices = {"transformers", "state-spaces"}});
  return flags;
}

}  // namespace

int main(int argc, char** argv) try {
  using hugging_face::Form;
  Options o;
  Run run(argc, argv, flags(o), {.device = "cpu", .alone = true});
  const SavedRun saved = saved_run(o.run);
  Params params(run.device());
  const layers::LanguageModel model(params, run.mesh(), model_options(saved));
  const int64_t step = restore(saved.folder, {state(params)}).value();
  hugging_face::write(o.out, params, model, o.form == "transformers" ? Form::transformers : Form::state_spaces);
  run.say(fmt::format("{}: {} at step {}, {} parameters", o.out, saved.folder, step, params.count()));
} catch (...) {
  return exit_status();
}
