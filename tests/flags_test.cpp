#include "adder/distributed/flags.h"

#include "catch.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

using namespace adder;

namespace {

struct Options {
  int64_t steps = 4800;
  double rate = 3e-4;
  bool tied = true;
  std::string schedule = "cosine";
  std::vector<std::string> text = {};
};

Flags flags(Options& o) {
  Flags flags("Trains a model.", "train --steps 10");
  flags.group("Training");
  flags.add("steps", o.steps, "optimizer steps", {.min = 1, .max = 1e6, .may_change = true});
  flags.add("rate", o.rate, "largest learning rate", {.min = 0});
  flags.add("schedule", o.schedule, "shape of the learning rate", {.choices = {"cosine", "linear", "constant"}});
  flags.group("Model");
  flags.add("tied", o.tied, "share the embedding with the head");
  flags.add("text", o.text, "folders and files to read");
  return flags;
}

void parse(Flags& f, std::vector<const char*> words) {
  words.insert(words.begin(), "/somewhere/train");
  f.parse(static_cast<int>(words.size()), words.data());
}

Options parsed(std::vector<const char*> words) {
  Options o;
  Flags f = flags(o);
  parse(f, std::move(words));
  return o;
}

// The sentence with which a command line is refused.
std::string refusal(std::vector<const char*> words) {
  try {
    parsed(std::move(words));
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

// A file of the given text that lives as long as the object.
struct File {
  std::string path;
  explicit File(const std::string& text) : path(std::filesystem::temp_directory_path() / "adder_flags_test.toml") {
    std::ofstream(path) << text;
  }
  ~File() { std::filesystem::remove(path); }
};

}  // namespace

TEST_CASE("flags: values of every type are read, and what is not given keeps its default") {
  const Options o = parsed({"--steps", "12", "--rate=1e-2", "--no-tied", "--schedule", "linear", "--text", "a", "b c"});
  CHECK(o.steps == 12);
  CHECK(o.rate == 0.01);
  CHECK_FALSE(o.tied);
  CHECK(o.schedule == "linear");
  CHECK(o.text == std::vector<std::string>{"a", "b c"});
  const Options none = parsed({});
  CHECK(none.steps == 4800);
  CHECK(none.rate == 3e-4);
  CHECK(none.tied);
  CHECK(none.text.empty());
}

TEST_CASE("flags: a yes/no flag takes its value after =, and of a flag given twice the last counts") {
  CHECK_FALSE(parsed({"--tied=false"}).tied);
  CHECK(parsed({"--no-tied", "--tied"}).tied);
  CHECK(parsed({"--steps", "3", "--steps", "5"}).steps == 5);
  CHECK(parsed({"--text", "a", "--steps", "5", "--text", "b"}).text == std::vector<std::string>{"a", "b"});
}

TEST_CASE("flags: a value in brackets is a value like any other") {
  CHECK(parsed({"--text", "[1, 2]", "[]", "a[0]"}).text == std::vector<std::string>{"[1, 2]", "[]", "a[0]"});
  CHECK(parsed({"--text=[a]", "--steps", "3"}).text == std::vector<std::string>{"[a]"});
  CHECK(refusal({"--schedule", "[sine]"}) == "--schedule is \"[sine]\", but must be cosine, linear or constant");
  CHECK(refusal({"[more]"}).starts_with("\"[more]\" stands alone"));
}

TEST_CASE("flags: a bad value is refused by a sentence that names flag and value") {
  CHECK(refusal({"--steps", "12x"}) == "--steps is \"12x\", which is not a whole number");
  CHECK(refusal({"--steps", "1.5"}) == "--steps is \"1.5\", which is not a whole number");
  CHECK(refusal({"--steps", "99999999999999999999"}) ==
        "--steps is \"99999999999999999999\", which is not a whole number");
  CHECK(refusal({"--steps=0"}) == "--steps is 0, but must be from 1 to 1000000");
  CHECK(refusal({"--steps", "-5"}) == "--steps is -5, but must be from 1 to 1000000");
  CHECK(refusal({"--rate", "-1e-3"}) == "--rate is -1e-3, but must be at least 0");
  CHECK(refusal({"--rate", "nan"}) == "--rate is \"nan\", which is not a number");
  CHECK(refusal({"--rate", ""}) == "--rate is \"\", which is not a number");
  CHECK(refusal({"--tied=perhaps"}) == "--tied is \"perhaps\", which is neither true nor false");
  CHECK(refusal({"--schedule", "sine"}) == "--schedule is \"sine\", but must be cosine, linear or constant");
  CHECK(refusal({"--steps"}) == "--steps needs a value");
  CHECK(refusal({"--text"}) == "--text needs a value");
  CHECK_THAT(refusal({"more"}), ContainsSubstring("\"more\" stands alone"));
  CHECK_THAT(refusal({"--tied", "false"}), ContainsSubstring("\"false\" stands alone"));
}

TEST_CASE("flags: an unknown flag is answered with the nearest known one") {
  CHECK(refusal({"--stpes", "12"}) == "--stpes: there is no such flag; did you mean --steps?");
  CHECK(refusal({"--sched=linear"}) == "--sched: there is no such flag; did you mean --schedule?");
  CHECK(refusal({"-steps", "12"}) == "-steps: there is no such flag; did you mean --steps?");
  CHECK(refusal({"--no-tide"}) == "--no-tide: there is no such flag; did you mean --no-tied?");
  CHECK(refusal({"--wombat"}) == "--wombat: there is no such flag; --help lists them all");
  CHECK(edit_distance("kitten", "sitting") == 3);
}

TEST_CASE("flags: a required flag that is missing is named with what it is for") {
  std::string prompt;
  Flags f("Generates text.");
  f.add("prompt", prompt, "the text to go on from", {.required = true});
  CHECK_THROWS_WITH(parse(f, {}), "--prompt must be given: the text to go on from");
  parse(f, {"--prompt=--x y"});
  CHECK(prompt == "--x y");
}

TEST_CASE("flags: a config file is read, the command line overrides it, and its errors name file and flag") {
  const File good("# a comment\nsteps = 7\n[Model]\ntied = false\ntext = [\"a\", \"b c\"]\nrate = 1e-3\n");
  const Options o = parsed({"--rate", "0.5", "--config", good.path.c_str()});
  CHECK(o.steps == 7);
  CHECK_FALSE(o.tied);
  CHECK(o.text == std::vector<std::string>{"a", "b c"});
  CHECK(o.rate == 0.5);
  std::ofstream(good.path) << "steps = many\n";
  CHECK(refusal({"--config", good.path.c_str()}) ==
        good.path + ": steps is \"many\", which is not a whole number");
  std::ofstream(good.path) << "[Model]\nstep = 3\n";
  CHECK(refusal({"--config", good.path.c_str()}) ==
        good.path + ": step: there is no such flag; did you mean --steps?");
  std::ofstream(good.path) << "steps = 7\n";
  Options told;
  Flags f = flags(told);
  parse(f, {"--config", good.path.c_str(), "--rate", "0.5"});
  CHECK(f.given("steps"));
  CHECK(f.given("rate"));
  CHECK_FALSE(f.given("tied"));
  CHECK(refusal({"--config", "/nowhere/x.toml"}) == "--config: /nowhere/x.toml is not a file");
}

TEST_CASE("flags: help teaches every flag with its default and limits, and nothing is assigned") {
  Options o;
  Flags f = flags(o);
  f.runs_go_on();
  std::string text;
  try {
    parse(f, {"--steps", "wrong", "--unknown", "--help"});
  } catch (const HelpShown& help) {
    text = help.text;
  }
  CHECK(o.steps == 4800);
  for (const char* part : {"Trains a model.", "usage: train [flags]", "example: train --steps 10",
                           "\nTraining\n  --steps N",
                           "optimizer steps (default 4800, from 1 to 1000000)", "\nModel\n  --tied, --no-tied",
                           "one of cosine, linear or constant", "--text TEXT...", "--config FILE",
                           "other values of --steps; every other flag"})
    CHECK_THAT(f.help("train", 200), ContainsSubstring(part));
  CHECK(text == f.help("/somewhere/train"));
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    CHECK((end - begin <= 100 && (end == begin || text[end - 1] != ' ')));
}

TEST_CASE("flags: as JSON, and compared with saved JSON, without those that may change") {
  Options o;
  Flags f = flags(o);
  parse(f, {"--text", "a\"b", "--rate", "inf"});
  CHECK(f.to_json() ==
        R"({"steps":4800,"rate":"Infinity","schedule":"cosine","tied":true,"text":["a\"b"]})");
  CHECK(f.differences(f.to_json()).empty());

  const auto found = f.differences(R"({"steps":1,"rate":0.001,"schedule":"linear","gone":3,"text":["a\"b"]})");
  REQUIRE(found.size() == 2);  // steps may change; tied, not saved, has its default
  CHECK(found[0].name == "rate");
  CHECK(found[0].saved == "0.001");
  CHECK(found[0].now == "Infinity");
  CHECK(found[1].name == "schedule");
  CHECK(found[1].saved == "linear");
  CHECK(found[1].now == "cosine");
  CHECK_THROWS_AS(f.differences("{\"steps\":"), Error);
}

TEST_CASE("flags: a double survives JSON exactly") {
  Options o;
  Flags f = flags(o);
  for (const char* text : {"0.1", "3e-4", "1.7976931348623157e308", "4.9e-324", "0.30000000000000004"}) {
    parse(f, {"--rate", text});
    CHECK(f.differences(f.to_json()).empty());
  }
}

TEST_CASE("flags: a preset gives other flags their defaults, wherever it stands, and is checked like any other") {
  int64_t layers = 1, width = 1;
  std::string size;
  const auto parsed_with = [&](std::vector<const char*> words) {
    layers = width = 1;
    Flags f("Trains a model.");
    f.add("layers", layers, "blocks");
    f.add("width", width, "channels");
    f.add("size", size, "both", {.choices = {"small", "large"}, .may_change = true, .preset = [&] {
            layers = width = size == "small" ? 10 : 20;
          }});
    parse(f, std::move(words));
    return std::pair(layers, width);
  };
  CHECK(parsed_with({}) == std::pair<int64_t, int64_t>(1, 1));
  CHECK(parsed_with({"--size", "large"}) == std::pair<int64_t, int64_t>(20, 20));
  CHECK(parsed_with({"--layers", "3", "--size", "small"}) == std::pair<int64_t, int64_t>(3, 10));
  const File config("layers = 4\nsize = \"small\"\n");
  CHECK(parsed_with({"--config", config.path.c_str(), "--width", "5"}) == std::pair<int64_t, int64_t>(4, 5));
  CHECK(parsed_with({"--config", config.path.c_str()}) == std::pair<int64_t, int64_t>(4, 10));
  // The command line, presets included, comes after the whole file.
  CHECK(parsed_with({"--config", config.path.c_str(), "--size", "large"}) == std::pair<int64_t, int64_t>(20, 20));
  CHECK(parsed_with({"--size", "large", "--width", "7", "--config", config.path.c_str()}) ==
        std::pair<int64_t, int64_t>(20, 7));
  CHECK_THROWS_WITH(parsed_with({"--size", "huge"}), "--size is \"huge\", but must be small or large");
}

TEST_CASE("flags: defaults of a GPU give way to what is given, with all presets in their order") {
  int64_t steps = 0, layers = 0;
  std::string size;
  const auto on_gpu = [&](std::vector<const char*> words) {
    steps = 1, layers = 1, size.clear();
    Flags f("Trains a model.");
    f.add("layers", layers, "blocks");
    f.add("steps", steps, "optimizer steps", {.on_gpu = "100"});
    f.add("size", size, "both", {.choices = {"small", "large"}, .preset = [&] { layers = size == "small" ? 10 : 20; },
                                 .on_gpu = "large"});
    parse(f, std::move(words));
    CHECK(f.have_gpu_defaults());
    CHECK(f.help("train").find("(default 1, on a GPU 100)") != std::string::npos);
    f.use_gpu_defaults();
    CHECK_FALSE((f.given("layers") && f.given("steps") && f.given("size")));
    return std::pair(layers, steps);
  };
  CHECK(on_gpu({}) == std::pair<int64_t, int64_t>(20, 100));
  CHECK(on_gpu({"--size", "small"}) == std::pair<int64_t, int64_t>(10, 100));
  CHECK(on_gpu({"--layers", "3", "--steps", "7"}) == std::pair<int64_t, int64_t>(3, 7));
  const File config("steps = 4\n");
  CHECK(on_gpu({"--config", config.path.c_str()}) == std::pair<int64_t, int64_t>(20, 4));
  CHECK(on_gpu({"--config", config.path.c_str(), "--steps", "5"}) == std::pair<int64_t, int64_t>(20, 5));
}
