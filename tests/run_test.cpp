#include "adder/core/json.h"
#include "adder/distributed/machine.h"
#include "adder/distributed/peak.h"
#include "adder/distributed/run.h"

#include "catch.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

using namespace adder;
namespace fs = std::filesystem;

namespace {

// A folder of its own for each test, deleted with the object.
struct Folder {
  std::string path = (fs::temp_directory_path() / fmt::format("adder_run_test_{}", getpid())).string();
  Folder() { fs::remove_all(path); }
  ~Folder() { fs::remove_all(path); }
};

struct Options {
  int64_t steps = 10;
  double rate = 0.1;
};

struct Program {
  Options o;
  Flags flags() {
    Flags flags("A test.");
    flags.add("steps", o.steps, "optimizer steps", {.may_change = true});
    flags.add("rate", o.rate, "learning rate");
    return flags;
  }
  std::unique_ptr<Run> run(const std::string& out, std::vector<const char*> words = {}) {
    o = {};
    words.insert(words.begin(), "build/train");
    return std::make_unique<Run>(static_cast<int>(words.size()), words.data(), flags(), RunOptions{.out = out});
  }
};

std::string read(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::vector<Json> lines(const std::string& path) {
  std::vector<Json> result;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) result.push_back(Json::parse(line));
  return result;
}

// While it lives, what is written to a descriptor goes to a file.
class Captured {
 public:
  explicit Captured(int number) : number_(number), before_(dup(number)), file_(std::tmpfile()) {
    std::fflush(stdout);
    dup2(fileno(file_), number_);
  }
  ~Captured() {
    std::fflush(stdout);
    dup2(before_, number_);
    close(before_);
    std::fclose(file_);
  }
  std::string text() const {
    std::fflush(stdout);
    std::string text(10'000, '\0');
    const ssize_t count = pread(fileno(file_), text.data(), text.size(), 0);
    text.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return text;
  }

 private:
  int number_, before_;
  std::FILE* file_;
};

// What the code prints on standard output.
template <class F>
std::string printed(F&& f) {
  const Captured output(STDOUT_FILENO);
  f();
  return output.text();
}

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("run: the folder holds run.json, metrics of every step and a curve") {
  const Folder folder;
  const std::string text = printed([&] {
    Program program;
    const auto run = program.run(folder.path, {"--rate", "0.5", "--seed", "7", "--threads", "1"});
    CHECK(run->seed() == 7);
    run->start({.step = 0, .steps = 2, .tokens_per_step = 100});
    run->log(1, {{"loss", full({1}, 2.5)}, {"grad_norm", 0.25}, {"learning_rate", 0.5}});
    run->log(2, {{"loss", 2.0}});
    run->log(2, {{"validation_loss", 2.25}});
    run->finish();
  });
  CHECK_THAT(text, ContainsSubstring("step 1/2  loss 2.5000  grad norm 0.25  lr 5.00e-01"));
  CHECK_THAT(text, ContainsSubstring("step 2/2  loss 2.0000"));
  CHECK_THAT(text, ContainsSubstring("step 2  validation_loss 2.25\n"));

  const auto json = Json::parse(read(folder.path + "/run.json"));
  CHECK(json.at("recipe") == "train");
  CHECK(json.at("options").at("rate") == 0.5);
  CHECK(json.at("options").at("steps") == 10);
  CHECK(json.at("seed") == 7);
  CHECK(json.at("starts").values().size() == 1);
  CHECK(json.at("starts").values()[0].at("command") == "build/train --rate 0.5 --seed 7 --threads 1");
  CHECK(json.at("starts").values()[0].at("threads") == 1);
  CHECK(json.at("starts").values()[0].at("host") == host_name());
  const Json& versions = json.at("versions");
  for (const char* name : {"adder", "compiler", "fmt", "mpi"}) CHECK(!versions.at(name).string().empty());

  const auto metrics = lines(folder.path + "/metrics.jsonl");
  REQUIRE(metrics.size() == 3);
  CHECK(metrics[0].at("step") == 1);
  CHECK(metrics[0].at("loss") == 2.5);
  CHECK(metrics[0].at("tokens_per_second").number() > 0);
  CHECK(metrics[2].at("validation_loss") == 2.25);
  CHECK_THAT(read(folder.path + "/loss.svg"), ContainsSubstring(">validation<"));
}

TEST_CASE("run: --help and bad flags leave no folder behind") {
  const Folder folder;
  Program program;
  CHECK_THROWS_AS(program.run(folder.path, {"--help"}), HelpShown);
  CHECK_THROWS_AS(program.run(folder.path, {"--rat", "1"}), UsageError);
  CHECK_THROWS_WITH(program.run(folder.path, {"--time-limit", "soon"}),
                    "--time-limit: \"soon\" is not a time: write minutes (90) or units (1h30m, 45s, 2d)");
  CHECK_FALSE(fs::exists(folder.path));
}

TEST_CASE("run: help says which flags a run may go on with, where there is a run to go on") {
  Program program;
  const auto help = [&](const char* out) {
    std::string text;
    try {
      program.run(out, {"--help"});
    } catch (const HelpShown& shown) {
      text = shown.text;
    }
    std::ranges::replace(text, '\n', ' ');
    return text;
  };
  CHECK_THAT(help("run"), ContainsSubstring("--tf32 and --peak; every other"));
  CHECK_THAT(help(""), !ContainsSubstring("every other"));
}

TEST_CASE("run: what was thrown becomes an exit status") {
  const auto status = [](auto thrown) {
    try {
      throw thrown;
    } catch (...) {
      return exit_status();
    }
  };
  const auto here = std::source_location::current();
  const Captured errors(STDERR_FILENO);
  int help = -1;
  CHECK(printed([&] { help = status(HelpShown{"how to\n"}); }) == "how to\n");
  CHECK(help == 0);
  CHECK(status(UsageError("usage sentence", here)) == 2);
  CHECK(status(Error("error sentence", here)) == 1);
  CHECK(status(std::runtime_error("other sentence")) == 1);
  CHECK(status(std::bad_alloc()) == 1);
  CHECK(status(1) == 1);
  CHECK_THAT(errors.text(), ContainsSubstring("error: usage sentence\nerror: error sentence\nerror: other sentence\n"));
}

TEST_CASE("run: values that are not finite are valid JSON") {
  const Folder folder;
  {
    RunFolder files(folder.path);
    files.start({.recipe = "train", .options = "{}"});
    files.append(1, {{"loss", std::nan("")}, {"a", infinity}, {"b", -infinity}, {"c \"quoted\"", 1e300}});
    CHECK(std::isnan(files.history("loss").at(0).second));
  }
  const auto metrics = lines(folder.path + "/metrics.jsonl");
  REQUIRE(metrics.size() == 1);
  CHECK(metrics[0].at("loss") == "NaN");
  CHECK(metrics[0].at("a") == "Infinity");
  CHECK(metrics[0].at("b") == "-Infinity");
  CHECK(metrics[0].at("c \"quoted\"") == 1e300);
}

TEST_CASE("run: going on cuts the metrics of later steps and what was half written, and adds a start") {
  const Folder folder;
  {
    RunFolder files(folder.path);
    files.start({.recipe = "train", .command = "first", .options = "{}"});
    for (int step = 1; step <= 5; ++step) files.append(step, {{"loss", 1.0 / step}});
  }
  std::ofstream(folder.path + "/metrics.jsonl", std::ios::app) << "{\"step\": 2, \"lo";
  {
    RunFolder files(folder.path);
    files.start({.recipe = "train", .command = "second", .options = "{}", .step = 3});
    CHECK(files.history("loss").size() == 3);
    files.append(4, {{"loss", 9.0}});
    CHECK(files.history("loss").back() == std::pair(4.0, 9.0));
  }
  const auto json = Json::parse(read(folder.path + "/run.json"));
  REQUIRE(json.at("starts").values().size() == 2);
  CHECK(json.at("starts").values()[0].at("command") == "first");
  CHECK(json.at("starts").values()[1].at("step") == 3);
}

TEST_CASE("run: changed flags are refused by name and values once there is a checkpoint, unless --fresh") {
  const Folder folder;
  printed([&] {
    Program program;
    program.run(folder.path)->start({.step = 0, .steps = 10});
    program.run(folder.path, {"--rate", "0.2"});  // no checkpoint: nothing to go on from
    fs::create_directories(folder.path + "/checkpoints/step_4");
    program.run(folder.path, {"--steps", "20", "--save-every", "5"});  // may change
    CHECK_THROWS_WITH(program.run(folder.path, {"--rate", "0.3", "--seed", "2"}),
                      fmt::format("the run in {} cannot go on with other flags: --rate was 0.1 and is now 0.3, "
                                  "--seed was 1 and is now 2; give the old value, another --out, or --fresh to "
                                  "start anew",
                                  folder.path));
    const auto fresh = program.run(folder.path, {"--rate", "0.3", "--fresh"});
    CHECK(fresh->fresh());
  });
}

TEST_CASE("run: where a GPU has its own defaults, a run keeps those that it began with") {
  const Folder folder;
  Options o;
  const auto started = [&](std::vector<const char*> words) {
    o = {};
    Flags flags("A test.");
    flags.add("steps", o.steps, "optimizer steps", {.on_gpu = "100"});
    words.insert(words.begin(), "build/train");
    const RunOptions options{.out = folder.path, .plans = true};
    Run(static_cast<int>(words.size()), words.data(), flags, options).start({.steps = o.steps});
    return o.steps;
  };
  printed([&] {
    CHECK(started({"--device", "cpu"}) == 10);
    CHECK(started({"--device", "cpu", "--defaults", "gpu"}) == 100);
    fs::create_directories(folder.path + "/checkpoints/step_4");
    CHECK(started({"--device", "cpu"}) == 100);
    CHECK(started({"--device", "cpu", "--plan"}) == 100);
    CHECK_THROWS_WITH(started({"--device", "cpu", "--defaults", "cpu"}),
                      ContainsSubstring("--steps was 100 and is now 10"));
    CHECK(started({"--device", "cpu", "--fresh"}) == 10);
  });
}

TEST_CASE("run: a plan makes no folder") {
  const Folder folder;
  int64_t steps = 1;
  Flags flags("A test.");
  flags.add("steps", steps, "optimizer steps");
  const std::array words{"build/train", "--plan", "--steps", "5"};
  const Run run(static_cast<int>(words.size()), words.data(), flags, {.out = folder.path, .plans = true});
  CHECK(run.planning());
  CHECK(steps == 5);
  CHECK_FALSE(fs::exists(folder.path));
}

TEST_CASE("run: where the peak is known the log says what share of it the model's FLOPs are") {
  const Folder folder;
  printed([&] {
    Program program;
    const auto run = program.run(folder.path, {"--peak", "2"});
    run->start({.steps = 1, .tokens_per_step = 1'000, .flops_per_token = 1e6});
    run->log(1, {{"loss", 1.0}});
    run->finish();
  });
  const Json line = lines(folder.path + "/metrics.jsonl")[0];
  CHECK(line.at("model_flops_utilisation").number() == Approx(line.at("tokens_per_second").number() * 1e6 / 2e12));
  CHECK(Json::parse(read(folder.path + "/run.json")).at("starts").values()[0].at("peak_tflops").number() == 2);
  CHECK(fs::exists(folder.path + "/tokens_per_second.svg"));
}

TEST_CASE("peak: a GPU is known by its name, and no other for it") {
  CHECK(peak_flops("NVIDIA H200", DType::bf16) == 989e12);
  CHECK(peak_flops("NVIDIA H100 80GB HBM3", DType::bf16) == 989e12);
  CHECK(peak_flops("NVIDIA H100 80GB HBM3", DType::f32) == 67e12);
  CHECK(peak_flops("NVIDIA H100 PCIe", DType::bf16) == 756e12);
  CHECK(peak_flops("NVIDIA A100-SXM4-80GB", DType::f32, true) == 156e12);
  CHECK(peak_flops("NVIDIA L40S", DType::bf16) == 362e12);
  CHECK(peak_flops("NVIDIA L4", DType::bf16) == 121e12);
  CHECK(peak_flops("NVIDIA L40", DType::bf16) == 0);
  CHECK(peak_flops("NVIDIA A1000", DType::bf16) == 0);
  CHECK(peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", DType::bf16) == 0);
}

TEST_CASE("run: the device is the GPU that answers or the CPU, and what cannot be is refused") {
  Program program;
  const bool gpu = gpu_count() > 0;
  CHECK(program.run("")->device() == (gpu ? Device::cuda : Device::cpu));
  CHECK(program.run("")->dtype() == (gpu ? DType::bf16 : DType::f32));
  CHECK(program.run("", {"--device", "cpu"})->dtype() == DType::f32);
  CHECK_THROWS_WITH(program.run("", {"--device", "cpu", "--dtype", "bf16"}),
                    "--dtype bf16 needs a GPU: the CPU computes in f32");
  // What a program would rather have gives way where the user did not ask for it.
  const char* const words[] = {"train", "--dtype", "bf16"};
  for (const std::string device : {"cpu", "cuda"}) {
    const bool there = device == "cuda" && gpu;
    const Run run(1, words, Flags("A test."), {.device = device, .dtype = "bf16"});
    CHECK(run.device() == (there ? Device::cuda : Device::cpu));
    CHECK(run.dtype() == (there ? DType::bf16 : DType::f32));
    if (!there) CHECK_THROWS_AS(Run(3, words, Flags("A test."), {.device = device, .dtype = "bf16"}), UsageError);
  }
  if (gpu) return;
  CHECK_THROWS_WITH(program.run("", {"--device", "cuda"}),
                    ContainsSubstring(built_with_cuda ? "no GPU answers" : "without CUDA"));
}

TEST_CASE("run: going on with another device, dtype or rounding of factors is allowed and said") {
  const Folder folder;
  fs::create_directories(folder.path + "/checkpoints/step_4");
  std::ofstream(folder.path + "/run.json")
      << R"({"recipe": "train", "options": {"device": "cuda", "dtype": "bf16", "tf32": true}})";
  const std::string text = printed([&] {
    Program program;
    program.run(folder.path, {"--device", "cpu", "--threads", "1"})->start({.step = 4, .steps = 10});
  });
  CHECK_THAT(text, ContainsSubstring("going on from step 4 in " + folder.path +
                                     ", with --device cpu instead of cuda, with --dtype f32 instead of bf16, "
                                     "with --tf32 false instead of true\n"));
  CHECK_THAT(text, ContainsSubstring("computing on the CPU in f32, 1 thread\n"));
}

TEST_CASE("run: a folder of another recipe, a damaged run.json and a file in the way are refused") {
  const Folder folder;
  Program program;
  fs::create_directories(folder.path + "/checkpoints/step_4");
  std::ofstream(folder.path + "/run.json") << R"({"recipe": "other", "options": {}})";
  CHECK_THROWS_WITH(program.run(folder.path), ContainsSubstring("holds a run of other, not of train"));
  std::ofstream(folder.path + "/run.json") << R"({"recipe": "tr)";
  CHECK_THROWS_WITH(program.run(folder.path), ContainsSubstring("run.json is damaged"));
  CHECK_THROWS_WITH(program.run(folder.path + "/run.json/x"), ContainsSubstring("cannot be made: Not a directory"));
  CHECK_THROWS_WITH(program.run(folder.path + "/run.json"), ContainsSubstring("cannot be made"));
  CHECK_THROWS_WITH(program.run("/proc/adder"), ContainsSubstring("run folder /proc/adder cannot be made"));
}

TEST_CASE("run: two runs cannot share a folder") {
  const Folder folder;
  {
    const RunFolder first(folder.path);
    CHECK_THROWS_WITH(RunFolder(folder.path),
                      fmt::format("run folder {} is in use by process {} on {}; stop it first or choose another folder",
                                  folder.path, getpid(), host_name()));
  }
  CHECK_NOTHROW(RunFolder(folder.path));
}

TEST_CASE("run: a full disk is one sentence") {
  if (!fs::exists("/dev/full")) return;
  const Folder folder;
  fs::create_directories(folder.path);
  fs::create_symlink("/dev/full", folder.path + "/run.json.partial");
  RunFolder files(folder.path);
  CHECK_THROWS_WITH(files.write("run.json", "text"), ContainsSubstring("run.json: cannot be written: No space left"));
}

TEST_CASE("run: a signal, the stop file and the time limit stop a run, which then says how to go on") {
  const Folder folder;
  Program program;
  std::string text, reason;
  const auto stopped_by = [&](auto action, std::vector<const char*> words) {
    text = printed([&] {
      const auto run = program.run(folder.path, words);
      run->start({.step = 0, .steps = 10});
      run->log(3, {{"loss", 1.0}});
      action();
      CHECK(run->stopping());
      CHECK(run->stopping());
      reason = run->stop_reason();
      run->finish();
    });
  };
  {
    const Captured answer(STDERR_FILENO);
    stopped_by([] { raise(SIGINT); }, {});
    CHECK(answer.text() == "\nstopping after this step, then saving; Ctrl-C again leaves at once\n");
  }
  CHECK(reason == "Ctrl-C");
  CHECK_THAT(text, ContainsSubstring("stopped by Ctrl-C after step 3 of 10; the same command goes on from there\n"));
  stopped_by([] { raise(SIGTERM); }, {"--fresh"});
  CHECK(reason == "SIGTERM");
  CHECK_THAT(text, ContainsSubstring("the same command without --fresh goes on"));
  stopped_by([] { raise(SIGUSR1); }, {});
  CHECK(reason == "SIGUSR1");
  stopped_by([] {}, {"--time-limit", "0.000001s"});
  CHECK(reason == "the time limit");
  stopped_by([&] { std::ofstream(folder.path + "/stop"); }, {});
  CHECK(reason == "the stop file");
  CHECK_FALSE(fs::exists(folder.path + "/stop"));
}

TEST_CASE("run: nothing stops a run that nobody asked to stop, and an old stop file is no order") {
  const Folder folder;
  fs::create_directories(folder.path);
  std::ofstream(folder.path + "/stop");
  Program program;
  const auto run = program.run(folder.path);
  CHECK_FALSE(run->stopping());
  CHECK(run->stop_reason().empty());
}

TEST_CASE("run: a second Ctrl-C leaves at once with status 130") {
  const pid_t child = fork();
  if (child == 0) {
    close(STDERR_FILENO);
    const Stop stop("", std::chrono::seconds(0));
    raise(SIGINT);
    raise(SIGINT);
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
}

TEST_CASE("run: times are read in minutes or with units") {
  CHECK(parse_duration("90").count() == 5400);
  CHECK(parse_duration("1h30m").count() == 5400);
  CHECK(parse_duration("1.5h").count() == 5400);
  CHECK(parse_duration("2d1h1m1s").count() == 2 * 86400 + 3661);
  CHECK(parse_duration("45s").count() == 45);
  for (const char* bad : {"", "h", "1x", "1h30", "-5", "1e3", "inf", "nan", "1 h", "10 "}) {
    INFO(bad);
    CHECK_THROWS_AS(parse_duration(bad), Error);
  }
  CHECK(to_text(std::chrono::seconds(42)) == "42s");
  CHECK(to_text(std::chrono::seconds(185)) == "3m05s");
  CHECK(to_text(std::chrono::seconds(4320)) == "1h12m");
  CHECK(to_text(std::chrono::seconds(90000)) == "1d01h");
}

TEST_CASE("run: the progress line shows what is known") {
  CHECK(to_text(Standing{.step = 1200, .steps = 4800, .loss = 1.23456, .grad_norm = 0.42, .learning_rate = 3e-4,
                         .tokens_per_second = 12345, .seconds_left = 4320}) ==
        "step 1,200/4,800  loss 1.2346  grad norm 0.42  lr 3.00e-04  12.3k tokens/s  1h12m left");
  const Standing all{.step = 1200, .steps = 4800, .loss = 1.23456, .grad_norm = 0.42, .learning_rate = 3e-4,
                     .tokens_per_second = 12345, .seconds_left = 4320, .utilisation = 0.3};
  CHECK(to_text(all, 90) == "step 1,200/4,800  loss 1.2346  grad norm 0.42  12.3k tokens/s (30.0 % MFU)  1h12m left");
  CHECK(to_text(all, 80) == "step 1,200/4,800  loss 1.2346  12.3k tokens/s (30.0 % MFU)  1h12m left");
  CHECK(to_text(all, 60) == "step 1,200/4,800  loss 1.2346  12.3k tokens/s  1h12m left");
  CHECK(to_text(all, 10) == to_text(all, 60));
  CHECK(to_text(Standing{.step = 1, .steps = 2, .loss = std::nan("")}) == "step 1/2  loss nan");
  CHECK(grouped(-1234567) == "-1,234,567");
  CHECK(grouped(-123) == "-123");
  Pace pace;
  for (int i = 0; i < 100; ++i) pace.add(0.5);
  CHECK(pace.seconds_per_step() == Approx(0.5));
  for (int i = 0; i < 100; ++i) pace.add(2.0);  // 200 s later the old pace is forgotten
  CHECK(pace.seconds_per_step() == Approx(2.0).epsilon(0.01));
}

TEST_CASE("run: a program without a folder has no flags for one, and leaves signals alone") {
  Program program;
  CHECK_THROWS_WITH(program.run("", {"--out", "x"}), ContainsSubstring("--out: there is no such flag"));
  struct sigaction before {}, now {};
  sigaction(SIGINT, nullptr, &before);
  const auto run = program.run("");
  sigaction(SIGINT, nullptr, &now);
  CHECK(before.sa_handler == now.sa_handler);
  CHECK_FALSE(run->stopping());
}

TEST_CASE("run: one process is a mesh of size 1, whose collectives change nothing but check their tensors") {
  const Mesh mesh;
  for (const Communicator& group : {mesh.world, mesh.data, mesh.tensor, mesh.sequence}) {
    CHECK(group.rank() == 0);
    CHECK(group.size() == 1);
    const Tensor x = full({2, 3}, 4);
    group.all_reduce(x);
    group.broadcast(x);
    group.barrier();
    CHECK(to_host(x) == std::vector<double>(6, 4));
    CHECK_THROWS_WITH(group.all_reduce(x.slice_last(0, 2)), ContainsSubstring("rows of 2 elements 3 apart"));
    CHECK_THROWS_WITH(group.broadcast(x, 1), "broadcast: root 1 of 1 processes");
  }
}

TEST_CASE("run: the commit is read from HEAD, a branch, packed refs or a linked worktree") {
  const Folder folder;
  const std::string commit(40, 'a'), other(40, 'b');
  const fs::path git = fs::path(folder.path) / ".git";
  CHECK(commit_of(folder.path) == "unknown");
  fs::create_directories(git / "refs/heads");
  std::ofstream(git / "HEAD") << commit << "\n";
  CHECK(commit_of(folder.path) == commit);
  std::ofstream(git / "HEAD") << "ref: refs/heads/main\n";
  CHECK(commit_of(folder.path) == "unknown");
  std::ofstream(git / "packed-refs") << "# pack-refs\n" << commit << " refs/heads/main\n";
  CHECK(commit_of(folder.path) == commit);
  std::ofstream(git / "refs/heads/main") << other << "\n";
  CHECK(commit_of(folder.path) == other);
  fs::create_directories(git / "worktrees/side");
  fs::create_directories(fs::path(folder.path) / "side");
  std::ofstream(fs::path(folder.path) / "side/.git") << "gitdir: " << (git / "worktrees/side").string() << "\n";
  std::ofstream(git / "worktrees/side/commondir") << "../..\n";
  std::ofstream(git / "worktrees/side/HEAD") << "ref: refs/heads/main\n";
  CHECK(commit_of(folder.path + "/side") == other);
}

TEST_CASE("run: the machine has a name, a processor and at least one core") {
  CHECK(allowed_cores() >= 1);
  CHECK_FALSE(processor_name().empty());
  CHECK_FALSE(host_name().empty());
}
