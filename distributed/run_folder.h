// RunFolder: what a run leaves on disk for its user.
//
//   run.json        what was run: recipe, options, seed, commit, versions, and for every start (the first and each time
//                   the run went on) its command, time, host, devices, peak_tflops, process and first step
//   metrics.jsonl   one JSON object a line: "step", "time" (seconds since 1970), and what was logged. Numbers that are
//                   not finite are the strings "NaN", "Infinity", "-Infinity": valid JSON that Python's float() and
//                   JavaScript's Number() read
//   loss.svg        the loss over the steps; tokens_per_second.svg: the speed
//   checkpoints/    (data/checkpoint.h)
//   lock            held while a process runs here, with its number
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace adder {

/// A file descriptor, closed on destruction.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor();
  int get() const { return number_; }

 private:
  int number_;
};

/// What run.json says about a start, beyond what the folder finds out itself (time, host, process, versions, commit).
struct StartRecord {
  std::string recipe = {}, command = {};
  std::string options = "{}";  // JSON object: Flags::to_json()
  std::vector<std::string> devices = {};
  int64_t seed = 0, step = 0, threads = 0, ranks = 1;
  double peak_tflops = 0;  // of each rank's device, for utilisation; 0: not known, not written
};

using NamedNumbers = std::vector<std::pair<std::string, double>>;

class RunFolder {
 public:
  /// Makes the folder if need be and locks it. Throws: cannot be made or written; in use by another process.
  explicit RunFolder(std::string path);

  const std::string& path() const { return path_; }
  /// Whether a folder, locked or not, has a checkpoint, a folder checkpoints/step_N, to go on from.
  static bool has_checkpoint(const std::string& path);
  /// The recipe and the options (JSON) that its run.json was started with; empty if there is no run.json.
  static std::pair<std::string, std::string> saved(const std::string& path);

  /// The run begins, or goes on, after `record.step` steps: metrics of later steps are cut off and run.json is written.
  /// At step 0 nothing of an earlier run is kept in either.
  void start(const StartRecord& record);
  /// Appends a line to metrics.jsonl.
  void append(int64_t step, const NamedNumbers& values);
  /// All (step, value) that metrics.jsonl has under a name.
  std::vector<std::pair<double, double>> history(std::string_view name) const;
  /// The steps after which run.json says that the run went on: ascending, without the first start at step 0.
  std::vector<double> starts() const;
  /// Writes a file of the folder whole or not at all.
  void write(const std::string& name, std::string_view text) const;

 private:
  void cut_metrics(int64_t last_step);

  std::string path_;
  Descriptor lock_, metrics_;
};

}  // namespace adder
