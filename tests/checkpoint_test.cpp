#include "adder/core/error.h"
#include "adder/data/checkpoint.h"
#include "adder/data/checkpoint_layout.h"
#include "adder/data/manifest.h"

#include "catch.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>

// HDF5 itself loses two blocks of memory when a file cannot be closed on a full disk; asked for by LeakSanitizer.
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

using namespace adder;
namespace fs = std::filesystem;

namespace {

struct RunFolder {
  RunFolder() : path(fs::temp_directory_path() / fmt::format("adder_checkpoint_{}", getpid())) { fs::remove_all(path); }
  ~RunFolder() { fs::remove_all(path); }
  std::string step(int64_t n) const { return layout::checkpoint(layout::folder(path.string()), n); }
  std::vector<int64_t> steps() const { return layout::steps(layout::folder(path.string())); }
  operator std::string() const { return path.string(); }
  fs::path path;
};

// A small model with its moments and a counter: what a run would save.
struct Model {
  explicit Model(uint64_t seed, DType type = DType::f32, int64_t shard = 0, int64_t shards = 1)
      : params(Device::cpu, {.seed = seed, .dtype = type, .shard = shard, .shards = shards}) {
    Params block = params / "block" / 3;
    block.create("rows", {8, 3}, init::normal(1), {.shard_axis = 0});
    block.create("columns", {3, 8}, init::normal(1), {.shard_axis = 1});
    block.create("middle", {2, 8, 3}, init::normal(1), {.shard_axis = 1});
    block.create("norm", {5}, init::normal(1));
    block.create_packed("in_proj", 3, {{"x", 8, init::normal(1), {.shard_axis = 0}},
                                       {"B", 4, init::normal(1), {.shard_axis = 0, .replicas = shards > 1 ? 2 : 1}},
                                       {"bias", 2, init::normal(1)}});
    for (const Param& p : params.all()) moments.push_back(clone(p.value));
  }
  std::vector<State> states() {
    State optimizer{.name = "optimizer",
                    .save = [this] { return Values{{"steps", steps}, {"best", best}, {"flags", flags}}; },
                    .load = [this](const Values& v) {
                      steps = value<int64_t>(v, "steps");
                      best = value<double>(v, "best");
                      flags = value<std::string>(v, "flags");
                    }};
    for (size_t i = 0; i < moments.size(); ++i)
      optimizer.tensors.push_back(Piece::like(params.all()[i], "first_moment", moments[i]));
    return {state(params), optimizer};
  }
  // Every element, in order.
  std::vector<double> elements() const {
    std::vector<double> all;
    const auto add = [&](const Tensor& t) {
      for (const double x : to_host(t)) all.push_back(x);
    };
    for (const Param& p : params.all()) add(p.value);
    for (const Tensor& m : moments) add(m);
    return all;
  }

  Params params;
  std::vector<Tensor> moments;
  int64_t steps = 0;
  double best = std::numeric_limits<double>::infinity();
  std::string flags = "--steps 10";
};

struct Warnings {
  Warn warn() {
    return [this](const std::string& sentence) { said += sentence + "\n"; };
  }
  std::string said;
};

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}
void write(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// Several ranks in one process, as threads of which one runs at a time, because HDF5 wants one.
class Ranks {
 public:
  explicit Ranks(int64_t size) : texts_(static_cast<size_t>(size)) {}

  void run(const std::function<void(const CheckpointRanks& ranks)>& f) {
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < texts_.size(); ++rank)
      threads.emplace_back([&, rank] {
        std::unique_lock lock(mutex_);
        f({.rank = static_cast<int64_t>(rank),
           .size = static_cast<int64_t>(texts_.size()),
           .exchange = [&, rank](const std::string& own) { return exchange(lock, rank, own); }});
      });
    for (std::thread& thread : threads) thread.join();
  }

 private:
  std::vector<std::string> exchange(std::unique_lock<std::mutex>& lock, size_t rank, const std::string& own) {
    texts_[rank] = own;
    const int64_t round = round_;
    if (++arrived_ == texts_.size()) {
      told_ = texts_;
      arrived_ = 0;
      ++round_;
      all_here_.notify_all();
    }
    all_here_.wait(lock, [&] { return round_ != round; });
    return told_;
  }

  std::mutex mutex_;
  std::condition_variable all_here_;
  std::vector<std::string> texts_, told_;
  size_t arrived_ = 0;
  int64_t round_ = 0;
};

void save(const RunFolder& run, Model& model, int64_t step) {
  Checkpoint(run, model.states(), {.fresh = !fs::exists(run.step(step - 1))}).save(step);
}

}  // namespace

TEST_CASE("checkpoint: what is loaded is what was saved, bit for bit, and again gives the same files") {
  const RunFolder run;
  Model saved(1), loaded(2);
  saved.steps = int64_t{1} << 53 | 1;  // no double holds it
  saved.flags = "--data \"a b\"\n\xc3\xa9";
  {
    Checkpoint checkpoint(run, saved.states());
    CHECK_FALSE(checkpoint.resumed());
    checkpoint.save(120);
  }
  CHECK(fs::exists(run.step(120) + "/manifest.json"));
  const std::string file = read(run.step(120) + "/rank_0000.h5"), manifest = read(run.step(120) + "/manifest.json");
  CHECK(Checkpoint(run, loaded.states()).resumed() == 120);
  CHECK(loaded.elements() == saved.elements());
  CHECK(loaded.steps == saved.steps);
  CHECK(loaded.best == saved.best);
  CHECK(loaded.flags == saved.flags);
  fs::remove_all(run.path);
  Checkpoint(run, loaded.states()).save(120);
  CHECK(read(run.step(120) + "/rank_0000.h5") == file);
  CHECK(read(run.step(120) + "/manifest.json") == manifest);
}

TEST_CASE("checkpoint: tensors larger than a chunk, without elements and of every type") {
  const RunFolder run;
  const auto numbers = [](const Shape& shape, DType type, double scale) {
    std::vector<double> values(static_cast<size_t>(shape.count()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = scale * static_cast<double>(i % 251);
    return from_host(shape, values, type);
  };
  const std::vector<Tensor> tensors = {
      numbers({1501, 701}, DType::f32, 0.5), numbers({1, 1'100'000}, DType::f32, 0.25),
      numbers({600'001}, DType::f64, 1e-3),  numbers({4, 0, 3}, DType::f32, 1),
      numbers({7, 3}, DType::bf16, 0.125),   numbers({2, 3, 4, 5}, DType::i32, 3),
      numbers({}, DType::f32, 1)};
  std::vector<Tensor> loaded;
  State out{.name = "all"}, in{.name = "all"};
  for (size_t i = 0; i < tensors.size(); ++i) {
    loaded.push_back(zeros(tensors[i].shape(), tensors[i].dtype()));
    out.tensors.push_back(Piece::whole(std::to_string(i), tensors[i]));
    in.tensors.push_back(Piece::whole(std::to_string(i), loaded[i]));
  }
  Checkpoint(run, {out}).save(1);
  CHECK(restore(run, {in}) == 1);
  for (size_t i = 0; i < tensors.size(); ++i) CHECK(bitwise_equal(tensors[i], loaded[i]));
}

TEST_CASE("checkpoint: the last two stay, leftovers of a kill go, one step is saved once") {
  const RunFolder run;
  Model model(1);
  fs::create_directories(run.step(7) + ".tmp");
  write(run.step(7) + ".tmp/rank_0000.h5", "half a file");
  Checkpoint checkpoint(run, model.states());
  CHECK_FALSE(fs::exists(run.step(7) + ".tmp"));
  checkpoint.save(1);
  const auto written = fs::last_write_time(run.step(1));
  checkpoint.save(1);
  CHECK(fs::last_write_time(run.step(1)) == written);
  checkpoint.save(2);
  CHECK(run.steps() == std::vector<int64_t>{2, 1});
  checkpoint.save(3);
  CHECK(run.steps() == std::vector<int64_t>{3, 2});
  CHECK_THROWS_WITH(checkpoint.save(2), ContainsSubstring("step 2 cannot be saved after step 3"));
  CHECK(layout::entries(layout::folder(run)).size() == 2);
}

TEST_CASE("checkpoint: a fresh run moves the older checkpoints aside, a second run is refused") {
  const RunFolder run;
  Model model(1);
  Checkpoint(run, model.states()).save(9);
  Checkpoint checkpoint(run, model.states(), {.fresh = true});
  CHECK_FALSE(checkpoint.resumed());
  checkpoint.save(1);
  CHECK(run.steps() == std::vector<int64_t>{1});
  CHECK(layout::steps(layout::folder(run) + ".1") == std::vector<int64_t>{9});
  CHECK(error_of([&] { Checkpoint(run, model.states()); }) == layout::folder(run) + ": another run is using it");
  CHECK(restore(run, {state(model.params)}) == 1);  // reading is free
}

TEST_CASE("checkpoint: f32 loads into an f64 run exactly, f64 into f32 rounded once") {
  const RunFolder run;
  for (const auto& [from, to] : {std::pair(DType::f32, DType::f64), std::pair(DType::f64, DType::f32)}) {
    Model saved(1, from), loaded(2, to);
    Checkpoint(run, saved.states(), {.fresh = true}).save(1);
    CHECK(Checkpoint(run, loaded.states()).resumed() == 1);
    std::vector<double> expected = saved.elements();
    for (double& x : expected) x = static_cast<float>(x);
    CHECK(loaded.elements() == expected);
  }
}

TEST_CASE("checkpoint: any number of ranks reads what any number saved") {
  const std::vector<int64_t> sizes = {1, 2, 4};
  std::map<std::pair<int64_t, int64_t>, std::vector<double>> expected;  // by ranks and rank
  for (const int64_t size : sizes)
    for (int64_t rank = 0; rank < size; ++rank) expected[{size, rank}] = Model(1, DType::f32, rank, size).elements();
  for (const int64_t from : sizes) {
    const RunFolder run;
    Ranks(from).run([&](const CheckpointRanks& ranks) {
      Model part(1, DType::f32, ranks.rank, ranks.size);
      if (ranks.rank == 0) part.steps = 5;
      Checkpoint(run, part.states(), {.ranks = ranks}).save(1);
    });
    for (const int64_t to : sizes) {
      int64_t equal = 0;
      Ranks(to).run([&](const CheckpointRanks& ranks) {
        Model part(2, DType::f32, ranks.rank, ranks.size);
        const Checkpoint checkpoint(run, part.states(), {.ranks = ranks});
        equal += checkpoint.resumed() == 1 && part.steps == 5 && part.elements() == expected[{to, ranks.rank}];
      });
      CHECK(equal == to);
    }
    // A tensor that every rank holds is written once: all share norm, two ranks share the rows of B.
    const std::string path = run.step(1) + "/manifest.json";
    const Manifest manifest = parse_manifest(read(path), path);
    CHECK(manifest.tensors.at("parameters/block/3/norm").pieces.size() == 1);
    CHECK(manifest.tensors.at("parameters/block/3/in_proj/B").pieces.size() == static_cast<size_t>((from + 1) / 2));
    CHECK(manifest.tensors.at("parameters/block/3/in_proj/x").pieces.size() == static_cast<size_t>(from));
  }
}

TEST_CASE("checkpoint: ranges of flat elements load into cuts along an axis and back") {
  const RunFolder run;
  std::vector<double> values(60);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
  const Tensor all = from_host({3, 5, 4}, values);
  const auto flat = [](int64_t begin, const Tensor& t) {
    return State{.name = "s", .tensors = {{.name = "t", .shape = {3, 5, 4}, .begin = begin, .tensor = t}}};
  };
  Ranks(3).run([&](const CheckpointRanks& ranks) {
    const int64_t cuts[] = {0, 7, 30, 60}, begin = cuts[ranks.rank], end = cuts[ranks.rank + 1];
    Checkpoint(run, {flat(begin, all.reshape({60}).slice_first(begin, end))}, {.ranks = ranks}).save(1);
  });
  const Tensor middle = zeros({3, 2, 4});
  CHECK(restore(run, {{.name = "s", .tensors = {{"t", {3, 5, 4}, 1, 2, middle}}}}) == 1);
  for (int64_t i = 0; i < 3; ++i)
    CHECK(bitwise_equal(middle.slice_first(i, i + 1).reshape({8}),
                        all.reshape({60}).slice_first(i * 20 + 8, i * 20 + 16)));
  Ranks(2).run([&](const CheckpointRanks& ranks) {
    const Tensor half = zeros({3, 5, 2});
    copy(all.slice_last(2 * ranks.rank, 2 * ranks.rank + 2), half);
    Checkpoint(run, {{.name = "s", .tensors = {{"t", {3, 5, 4}, 2, 2 * ranks.rank, half}}}},
               {.fresh = true, .ranks = ranks}).save(2);
  });
  const Tensor range = zeros({23});
  CHECK(restore(run, {flat(7, range)}) == 2);
  CHECK(bitwise_equal(range, all.reshape({60}).slice_first(7, 30)));
}

TEST_CASE("checkpoint: a rank that fails or a piece that no rank holds fails the save on all ranks") {
  const RunFolder run;
  std::vector<std::string> said(2);
  const auto attempt = [&](auto&& states_of) {
    Ranks(2).run([&](const CheckpointRanks& ranks) {
      said[static_cast<size_t>(ranks.rank)] =
          error_of([&] { Checkpoint(run, states_of(ranks.rank), {.ranks = ranks}).save(1); });
    });
    CHECK(said[0] == said[1]);
    return said[0];
  };
  const Tensor t = zeros({2});
  CHECK(attempt([&](int64_t rank) {
          return std::vector<State>{{.name = rank == 0 ? "a" : "a/b", .tensors = {Piece::whole("t", t)}}};
        }) == "checkpoint: \"a/b\" cannot name a state");
  CHECK_THAT(attempt([&](int64_t rank) {
               return std::vector<State>{{.name = "a", .tensors = {{"t", {6}, 0, 4 * rank, t}}}};
             }),
             ContainsSubstring("a/t has a piece from 4 where 2 was expected"));
  CHECK_THAT(attempt([&](int64_t rank) {
               return std::vector<State>{{.name = "a", .tensors = {{"t", {4 + rank}, 0, 2 * rank, t}}}};
             }),
             ContainsSubstring("f32 [4] cut along axis 0 on one rank and f32 [5]"));
  CHECK(layout::entries(layout::folder(run)).empty());
}

TEST_CASE("checkpoint: every flipped bit and every truncation is refused by name and the one before is used") {
  const RunFolder run;
  Model older(1), newer(2), loaded(3);
  newer.steps = 2;
  save(run, older, 1);
  Checkpoint checkpoint(run, loaded.states());
  for (size_t i = 0; i < loaded.moments.size(); ++i) copy(newer.moments[i], loaded.moments[i]);
  for (size_t i = 0; i < loaded.moments.size(); ++i) copy(newer.params.all()[i].value, loaded.params.all()[i].value);
  loaded.steps = 2;
  checkpoint.save(2);
  const Random random(1, "damage");
  const std::string manifest = run.step(2) + "/manifest.json", tensors = run.step(2) + "/rank_0000.h5";
  for (uint64_t i = 0; i < 300; ++i) {
    const std::string path = i % 3 == 0 ? manifest : tensors, bytes = read(path);
    std::string damaged = bytes;
    const auto at = static_cast<size_t>(random.uniform(i) * static_cast<double>(bytes.size()));
    if (random.uniform(i, 1) < 0.25)
      damaged.resize(at);
    else
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << random.bits(i, 2) % 8));
    write(path, damaged);
    Warnings warnings;
    const auto step = restore(run, loaded.states(), {.all = true, .warn = warnings.warn()});
    write(path, bytes);
    INFO(path << " byte " << at << ": " << warnings.said);
    REQUIRE(step == 1);
    REQUIRE(loaded.elements() == older.elements());
    REQUIRE(loaded.steps == older.steps);
    REQUIRE_THAT(warnings.said, ContainsSubstring(path));
  }
  CHECK(restore(run, loaded.states()) == 2);
  CHECK(loaded.elements() == newer.elements());
}

TEST_CASE("checkpoint: a kill at any moment leaves the last whole checkpoint") {
  const RunFolder run;
  Model model(1), loaded(2);
  int64_t newest = 0;
  const Random random(1, "kill");
  for (uint64_t i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {  // resumes and saves, step after step, until killed
      try {
        Checkpoint checkpoint(run, model.states());
        for (int64_t step = checkpoint.resumed().value_or(0) + 1;; ++step) {
          model.steps = step;
          for (const Tensor& m : model.moments) fill(m, static_cast<double>(step));
          checkpoint.save(step);
        }
      } catch (const Error& error) {
        fmt::print(stderr, "{}\n", error.what());
      }
      _exit(1);
    }
    // Longer and longer until the first save is through, however slow the machine.
    usleep(static_cast<useconds_t>(1'000 + (newest > 0 ? 30'000 : 30'000 * (i + 1)) * random.uniform(i)));
    REQUIRE(kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));  // it had not ended by itself
    Warnings warnings;
    const int64_t step = restore(run, loaded.states(), {.all = true, .warn = warnings.warn()}).value_or(0);
    REQUIRE(warnings.said.empty());
    REQUIRE(step >= newest);
    newest = step;
    if (step == 0) continue;
    REQUIRE(loaded.steps == step);
    for (const Tensor& m : loaded.moments)
      REQUIRE(to_host(m) == std::vector<double>(static_cast<size_t>(m.count()), static_cast<double>(step)));
  }
  CHECK(newest > 0);
}

TEST_CASE("checkpoint: a missing file is damage, too; with no whole checkpoint left the run does not start anew") {
  const RunFolder run;
  Model first(1), loaded(2);
  {
    Checkpoint checkpoint(run, first.states());
    checkpoint.save(10);
    first.steps = 20;
    checkpoint.save(20);
  }
  fs::remove(run.step(20) + "/rank_0000.h5");
  Warnings warnings;
  {
    // The damaged one counts as none: the good one stays although newer steps exist, and its step can be saved again.
    Checkpoint checkpoint(run, loaded.states(), {.warn = warnings.warn()});
    CHECK(checkpoint.resumed() == 10);
    CHECK(loaded.steps == 0);
    checkpoint.save(15);
    CHECK(run.steps() == std::vector<int64_t>{15, 10});
    checkpoint.save(20);
    CHECK(run.steps() == std::vector<int64_t>{20, 15});
  }
  CHECK_THAT(warnings.said, ContainsSubstring("step_00000020/rank_0000.h5: cannot be read (No such file"));
  fs::remove(run.step(20) + "/manifest.json");
  write(run.step(15) + "/manifest.json", "{}");
  const std::string said = error_of([&] { Checkpoint(run, loaded.states(), {.warn = warnings.warn()}); });
  CHECK_THAT(said, ContainsSubstring("no checkpoint is whole"));
  CHECK_THAT(said, ContainsSubstring("step_00000020/manifest.json: cannot be read"));
  CHECK_THAT(said, ContainsSubstring("step_00000015/manifest.json: its checksum does not match"));
  CHECK(run.steps() == std::vector<int64_t>{20, 15});  // nothing is lost
}

TEST_CASE("checkpoint: what does not fit is named, never replaced by an older checkpoint") {
  const RunFolder run;
  const auto states = [](const Shape& shape, const std::string& second, DType type = DType::f32) {
    std::vector<State> all = {{.name = "parameters", .tensors = {Piece::whole("w", zeros(shape, type))}}};
    if (!second.empty()) all[0].tensors.push_back(Piece::whole(second, zeros({2})));
    return all;
  };
  Checkpoint(run, states({3, 4}, "v")).save(1);
  const auto said = [&](const std::vector<State>& with) { return error_of([&] { Checkpoint(run, with); }); };
  CHECK(said(states({3, 4}, "v")) == "no error");
  CHECK(said(states({3, 5}, "v")) == run.step(1) + ": parameters/w has shape [3, 4] but this run has [3, 5]");
  CHECK(said(states({3, 4}, "u")) == run.step(1) + ": has no tensor parameters/u, which this run has with shape [2]");
  CHECK(said(states({3, 4}, "")) == run.step(1) + ": holds the tensor parameters/v [2], which this run has not");
  CHECK(said(states({3, 4}, "v", DType::i32)) == run.step(1) + ": parameters/w is f32 but this run has i32");
  std::vector<State> more = states({3, 4}, "v");
  more.push_back({.name = "loader"});
  CHECK(said(more) == run.step(1) + ": does not hold the state loader");
  CHECK(said({{.name = "parameters", .load = [](const Values& v) { value<int64_t>(v, "samples"); }}}) ==
        "the saved state has no value samples");
  CHECK(said({}) == run.step(1) + ": holds the state parameters, which this run has not");
  CHECK(restore(run, {}) == 1);  // a reader may want less
  const std::string path = run.step(1) + "/manifest.json";
  Manifest later = parse_manifest(read(path), path);
  later.format = 2;
  write(path, to_text(later));
  CHECK(said(states({3, 4}, "v")) == run.step(1) + ": has format 2, this program reads 1");
}

TEST_CASE("checkpoint: manifests with a good checksum and bad entries are refused") {
  const StoredTensor tensor{.dtype = DType::f32, .shape = {2, 3}, .axis = 0, .pieces = {{0, 2, 0, 7}}};
  const Manifest good{.step = 1, .files = {{8, 1}}, .tensors = {{"s/t", tensor}}, .values = {}};
  const auto complete = [](Manifest m) { return error_of([&] { check_complete(m, "m"); }); };
  CHECK(complete(parse_manifest(to_text(good), "m")) == "no error");
  for (const auto& [begin, end, file] : {std::tuple(0, 1, 0), std::tuple(1, 2, 0), std::tuple(0, 2, 1)}) {
    Manifest bad = good;
    bad.tensors.at("s/t").pieces = {{begin, end, file, 7}};
    CHECK_THAT(complete(bad), ContainsSubstring("m: s/t "));
  }
  const auto refused = [&](auto&& change) {
    Manifest bad = good;
    change(bad, bad.tensors.at("s/t"));
    CHECK_THAT(error_of([&] { parse_manifest(to_text(bad), "m"); }), ContainsSubstring("m: malformed"));
  };
  refused([](Manifest&, StoredTensor& t) { t.axis = 2; });
  refused([](Manifest&, StoredTensor& t) { t.pieces[0].end = 3; });
  refused([](Manifest& m, StoredTensor&) { m.step = -1; });
  CHECK_THROWS_AS(parse_manifest("", "m"), Error);
}

TEST_CASE("checkpoint: a folder that cannot be made is one sentence") {
  const RunFolder run;
  Model model(1);
  fs::create_directories(run.path);
  write(run.path / "file", "x");
  const std::string inside = (run.path / "file").string();
  CHECK(error_of([&] { Checkpoint(inside, model.states()); }) ==
        inside + "/checkpoints: the folder cannot be made (Not a directory)");
}

TEST_CASE("checkpoint: a full disk is one sentence and the earlier checkpoint stays") {
  const RunFolder run;
  Model model(1);
  const Tensor large = full({50'000}, 1.5);
  std::vector<State> states = model.states();
  states.push_back({.name = "large", .tensors = {Piece::whole("t", large)}});
  Checkpoint checkpoint(run, states);
  checkpoint.save(1);
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
  std::vector<std::string> said;
  // No file may grow past the limit: in the data, in HDF5's own tables, in the first bytes.
  for (const rlim_t bytes : {100'000, 4'000, 0}) {
    const rlimit low{.rlim_cur = bytes, .rlim_max = old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &low);
    said.push_back(error_of([&] { checkpoint.save(2); }));
    setrlimit(RLIMIT_FSIZE, &old);
  }
  std::signal(SIGXFSZ, before);
  for (const std::string& sentence : said) {
    CHECK_THAT(sentence, ContainsSubstring("step_00000002.tmp/rank_0000.h5"));
    CHECK_THAT(sentence, ContainsSubstring("File too large"));
  }
  CHECK(layout::entries(layout::folder(run)) == std::vector<std::string>{"step_00000001"});
  checkpoint.save(2);  // space again
  Model loaded(2);
  CHECK(restore(run, loaded.states()) == 2);
  CHECK(loaded.elements() == model.elements());
}
