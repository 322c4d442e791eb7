#include "adder/core/error.h"
#include "adder/data/checkpoint.h"
#include "adder/data/saved_run.h"
#include "adder/tests/temporary_folder.h"

#include "catch.h"

#include <chrono>
#include <limits>

using namespace adder;

namespace {

// A run with a checkpoint whose manifest is `age` old.
void make_run(const TemporaryFolder& runs, const std::string& name, int64_t step, std::chrono::minutes age) {
  runs.write(name + "/run.json", R"({"recipe": "train", "options": {"layers": 3}})");
  Params params(Device::cpu);
  params.create("weight", {2}, init::constant(1));
  Checkpoint(runs / name, {state(params)}).save(step);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(runs / name))
    if (entry.path().filename() == "manifest.json")
      std::filesystem::last_write_time(entry, std::filesystem::file_time_type::clock::now() - age);
}

}  // namespace

TEST_CASE("saved run: recipe and flags are those of run.json") {
  const TemporaryFolder runs;
  make_run(runs, "a", 5, std::chrono::minutes(0));
  const SavedRun run = saved_run(runs / "a");
  CHECK(run.folder == runs / "a");
  CHECK(run.recipe == "train");
  CHECK(run.flags == R"({"layers":3})");
}

TEST_CASE("saved run: options take the values of its flags, whatever else was saved") {
  const SavedRun run{.folder = "runs/a", .flags = R"({"steps": 9, "layers": 3, "tied": false, "dt-max": "Infinity",
                     "dt-min": 1e-5, "kind": "a b=c", "empty": "", "device": "cuda"})"};
  int64_t layers = 1, width = 7;
  bool tied = true;
  double most = 1, least = 0;
  std::string kind, empty = "full", device = "cpu";
  Flags flags("");
  flags.add("layers", layers, "", {.max = 5});
  flags.add("width", width, "");
  flags.add("tied", tied, "");
  flags.add("dt-max", most, "");
  flags.add("dt-min", least, "");
  flags.add("kind", kind, "");
  flags.add("empty", empty, "");
  flags.add("device", device, "", {.may_change = true});
  run.assign(flags);
  CHECK(layers == 3);
  CHECK(width == 7);
  CHECK_FALSE(tied);
  CHECK(most == std::numeric_limits<double>::infinity());
  CHECK(least == 1e-5);
  CHECK(kind == "a b=c");
  CHECK(empty.empty());
  CHECK(device == "cpu");
  CHECK_THROWS_WITH((SavedRun{.folder = "runs/a", .flags = R"({"layers": "x"})"}.assign(flags)),
                    ContainsSubstring("runs/a/run.json: is damaged, --layers is \"x\""));
  CHECK_THROWS_WITH((SavedRun{.folder = "runs/a", .flags = R"({"layers": 6})"}.assign(flags)),
                    ContainsSubstring("at most 5"));
}

TEST_CASE("saved run: what is no trained run is named") {
  const TemporaryFolder runs;
  CHECK_THROWS_WITH(saved_run(runs / "none"), ContainsSubstring("there is no such run folder"));
  runs.write("a/notes", "");
  CHECK_THROWS_WITH(saved_run(runs / "a"), ContainsSubstring("holds no run.json"));
  for (const char* damaged : {"", "[]", R"({"recipe": "t)", R"({"recipe": "a"})", R"({"recipe": 1, "options": {}})"}) {
    runs.write("a/run.json", damaged);
    CHECK_THROWS_WITH(saved_run(runs / "a"), ContainsSubstring("a/run.json: is damaged"));
  }
  runs.write("a/run.json", R"({"recipe": "train", "options": {}})");
  CHECK_THROWS_WITH(saved_run(runs / "a"), ContainsSubstring("has no checkpoint yet"));
}

TEST_CASE("saved run: the newest is the one whose checkpoint is the youngest") {
  const TemporaryFolder runs;
  CHECK_FALSE(newest_run(runs.path()));
  CHECK_FALSE(newest_run(runs / "none"));
  runs.write("without/run.json", R"({"recipe": "train", "options": {}})");
  runs.write("file", "");
  CHECK_FALSE(newest_run(runs.path()));
  make_run(runs, "b", 7, std::chrono::minutes(10));
  make_run(runs, "a", 3, std::chrono::minutes(5));
  make_run(runs, "c", 9, std::chrono::minutes(20));
  CHECK(newest_run(runs.path()) == runs / "a");
}
