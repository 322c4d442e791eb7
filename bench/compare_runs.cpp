// compare_runs: whether two trainings differ by more than two seeds do: the means of 20 losses of three runs.
#include "adder/core/error.h"
#include "adder/distributed/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

using namespace adder;

struct Options {
  std::string a, b, c;
  int64_t steps = 20;
  double share = 0.5, least = 0.01;
};

Flags flags(Options& o) {
  Flags flags("Compares the losses of run folders: b and a, which should be one training, and c and b, which differ by "
              "their seed. Prints the means over every 20 steps, and fails unless in the last of them |b - a| is at "
              "most the larger of 0.5 |c - b| and 0.01 nats.",
              "./adder bench compare_runs --a runs/f32 --b runs/bf16 --c runs/bf16-seed2");
  flags.group("Benchmark");
  flags.add("a", o.a, "run folder, for example of a run in f32");
  flags.add("b", o.b, "the same training in another way, for example in bf16");
  flags.add("c", o.c, "as b with another seed");
  flags.add("steps", o.steps, "losses in a mean", {.min = 1});
  flags.add("share", o.share, "of |c - b| that |b - a| may be", {.min = 0});
  flags.add("least", o.least, "nats that |b - a| may be in any case", {.min = 0});
  return flags;
}

// The loss of each step, the first one first. A run that went on after a stop has each step once all the same.
std::vector<double> losses(const std::string& name, const std::string& folder) {
  check(!folder.empty(), "compare_runs: no run folder is given as --{}", name);
  check(std::filesystem::exists(folder + "/metrics.jsonl"), "compare_runs: there is no {}/metrics.jsonl", folder);
  std::vector<double> values;
  for (const auto& [step, loss] : RunFolder(folder).history("loss")) {
    check(step == static_cast<double>(values.size() + 1), "compare_runs: {} has step {} after {} steps", folder, step,
          values.size());
    values.push_back(loss);
  }
  return values;
}

double mean(const std::vector<double>& values, int64_t begin, int64_t count) {
  double sum = 0;
  for (int64_t i = begin; i < begin + count; ++i) sum += values[static_cast<size_t>(i)];
  return sum / static_cast<double>(count);
}

int main(int argc, char** argv) try {
  Options o;
  const Run run(argc, argv, flags(o));
  const auto a = losses("a", o.a), b = losses("b", o.b), c = losses("c", o.c);
  check(a.size() == b.size() && b.size() == c.size(), "compare_runs: the runs have {}, {} and {} steps", a.size(),
        b.size(), c.size());
  const auto steps = static_cast<int64_t>(a.size());
  check(steps >= o.steps, "compare_runs: {} steps have no mean of {}", steps, o.steps);

  fmt::print("a {}\nb {}\nc {}\n\n", o.a, o.b, o.c);
  fmt::print("| steps | a | b | c | \\|b - a\\| | \\|c - b\\| |\n|---|---|---|---|---|---|\n");
  double apart = 0, seeds = 0;
  for (int64_t end = steps % o.steps + o.steps; end <= steps; end += o.steps) {
    const int64_t begin = end - o.steps;
    const double x = mean(a, begin, o.steps), y = mean(b, begin, o.steps), z = mean(c, begin, o.steps);
    apart = std::abs(y - x), seeds = std::abs(z - y);
    fmt::print("| {} to {} | {:.4f} | {:.4f} | {:.4f} | {:.4f} | {:.4f} |\n", begin + 1, end, x, y, z, apart, seeds);
  }
  const double most = std::max(o.share * seeds, o.least);
  const bool near = apart <= most;  // false for NaN
  fmt::print("\nsteps {} to {}: |b - a| {:.4f} {} max({} |c - b|, {}) = {:.4f}\n", steps - o.steps + 1, steps, apart,
             near ? "<=" : "is not <=", o.share, o.least, most);
  check(near, "compare_runs: {} is further from {} than allowed", o.b, o.a);
} catch (...) {
  return adder::exit_status();
}
