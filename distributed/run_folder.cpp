#include "adder/distributed/run_folder.h"

#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/distributed/environment.h"
#include "adder/distributed/machine.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace adder {
namespace {

namespace fs = std::filesystem;

Descriptor opened(const std::string& path, int mode) {
  Descriptor file(open(path.c_str(), mode | O_CLOEXEC, 0666));
  check(file.get() >= 0, "{}: cannot be written: {}", path, std::strerror(errno));
  return file;
}

void write_all(const Descriptor& file, std::string_view text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t count = ::write(file.get(), text.data(), text.size());
    check(count > 0 || errno == EINTR, "{}: cannot be written: {}", path, std::strerror(errno));
    if (count > 0) text.remove_prefix(static_cast<size_t>(count));
  }
}

Json number(double x) {
  if (std::isfinite(x)) return x;
  return std::isnan(x) ? "NaN" : x > 0 ? "Infinity" : "-Infinity";
}

std::string rest_of(std::ifstream& file) { return {std::istreambuf_iterator<char>(file), {}}; }

std::string now_utc() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))); }

Json versions() {
  Json json;
  json["adder"] = ADDER_VERSION;
  json["compiler"] = __VERSION__;
  json["fmt"] = fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  json["mpi"] = library_version();
  return json;
}

bool is_checkpoint(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename().string();
  return entry.is_directory() && name.starts_with("step_") && name.size() > 5 &&
         name.find_first_not_of("0123456789", 5) == std::string::npos;
}

// The step of a line of metrics; -1 for a line that is damaged or was cut short.
int64_t step_of(const Json& line) {
  const Json* const step = line.find("step");
  return step && step->is_integer() ? step->integer() : -1;
}

}  // namespace

Descriptor::~Descriptor() {
  if (number_ >= 0) close(number_);
}

RunFolder::RunFolder(std::string path) : path_(std::move(path)) {
  std::error_code error;
  fs::create_directories(path_, error);
  check(fs::is_directory(path_), "run folder {} cannot be made: {}", path_,
        error ? error.message() : "there is a file of this name");
  const std::string name = path_ + "/lock";
  lock_ = opened(name, O_RDWR | O_CREAT);
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {  // file systems without locks do without
    char holder[32] = {};
    [[maybe_unused]] const ssize_t count = read(lock_.get(), holder, sizeof holder - 1);
    fail("run folder {} is in use by process {}; stop it first or choose another folder", path_,
         std::string(holder).substr(0, std::strcspn(holder, "\n")));
  }
  check(ftruncate(lock_.get(), 0) == 0, "{}: cannot be written: {}", name, std::strerror(errno));
  write_all(lock_, fmt::format("{} on {}\n", getpid(), host_name()), name);
}

bool RunFolder::has_checkpoint(const std::string& path) {
  std::error_code none;
  const fs::directory_iterator entries(path + "/checkpoints", none);
  return !none && std::any_of(begin(entries), end(entries), is_checkpoint);
}

std::pair<std::string, std::string> RunFolder::saved(const std::string& path) {
  std::ifstream file(path + "/run.json");
  if (!file) return {};
  const Json json = Json::parse_or_null(rest_of(file));
  const Json *recipe = json.find("recipe"), *options = json.find("options");
  check(recipe && recipe->is_string() && options, "{}/run.json is damaged: it should hold a recipe and its options",
        path);
  return {recipe->string(), options->text()};
}

void RunFolder::start(const StartRecord& record) {
  cut_metrics(record.step);
  Json starts = Json::array();
  if (std::ifstream file(path_ + "/run.json"); record.step > 0 && file)
    if (const Json before = Json::parse_or_null(rest_of(file)); before.find("starts") && before.at("starts").is_array())
      starts = before.at("starts");
  Json::Array devices(record.devices.begin(), record.devices.end());
  Json start = Json::object({{"time", now_utc()}, {"step", record.step}, {"command", record.command},
                             {"host", host_name()}, {"process", getpid()}, {"ranks", record.ranks},
                             {"threads", record.threads}, {"devices", Json::array(std::move(devices))}});
  if (record.peak_tflops > 0) start["peak_tflops"] = record.peak_tflops;
  starts.push_back(std::move(start));
  const Json run = Json::object({{"recipe", record.recipe}, {"options", Json::parse(record.options)},
                                 {"seed", record.seed}, {"commit", source_commit()}, {"versions", versions()},
                                 {"starts", starts}});
  write("run.json", run.text(2) + "\n");
}

void RunFolder::cut_metrics(int64_t last_step) {
  const std::string name = path_ + "/metrics.jsonl";
  std::string kept, line;
  if (std::ifstream file(name); last_step > 0 && file)
    while (std::getline(file, line))
      if (const int64_t step = step_of(Json::parse_or_null(line)); step >= 0 && step <= last_step)
        kept += line + "\n";
  write("metrics.jsonl", kept);
  metrics_ = opened(name, O_WRONLY | O_APPEND);
}

void RunFolder::append(int64_t step, const NamedNumbers& values) {
  check(metrics_.get() >= 0, "run folder {}: start() comes before the first line of metrics", path_);
  const double time = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  Json line = Json::object({{"step", step}, {"time", std::round(time * 1000) / 1000}});
  for (const auto& [name, value] : values) line[name] = number(value);
  write_all(metrics_, line.text() + "\n", path_ + "/metrics.jsonl");
}

std::vector<std::pair<double, double>> RunFolder::history(std::string_view name) const {
  std::vector<std::pair<double, double>> points;
  std::string text;
  for (std::ifstream file(path_ + "/metrics.jsonl"); std::getline(file, text);) {
    const Json line = Json::parse_or_null(text);
    const Json* const value = line.find(name);
    if (step_of(line) < 0 || !value) continue;
    points.emplace_back(step_of(line), value->is_number() ? value->number() : std::nan(""));
  }
  return points;
}

std::vector<double> RunFolder::starts() const {
  std::vector<double> steps;
  std::ifstream file(path_ + "/run.json");
  const Json run = file ? Json::parse_or_null(rest_of(file)) : Json();
  const Json* const starts = run.find("starts");
  if (starts == nullptr || !starts->is_array()) return steps;
  for (const Json& start : starts->values())
    if (const int64_t step = step_of(start); step > 0) steps.push_back(static_cast<double>(step));
  std::sort(steps.begin(), steps.end());
  return steps;
}

void RunFolder::write(const std::string& name, std::string_view text) const {
  const std::string target = path_ + "/" + name, partial = target + ".partial";
  {
    const Descriptor file = opened(partial, O_WRONLY | O_CREAT | O_TRUNC);
    write_all(file, text, target);
    check(fsync(file.get()) == 0, "{}: cannot be written: {}", target, std::strerror(errno));
  }
  check(std::rename(partial.c_str(), target.c_str()) == 0, "{}: cannot be written: {}", target, std::strerror(errno));
}

}  // namespace adder
