#include "adder/distributed/machine.h"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace adder {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// Cores by affinity; a mask wider than cpu_set_t fails and leaves the count of processors.
int64_t cores_by_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, omp_get_num_procs());
}

const fs::path control_groups = "/sys/fs/cgroup";

// Calls f(file) for a file of that name in this process's control group and in each above it.
template <class F>
void in_control_groups(const char* name, F&& f) {
  std::string group = "/", line;
  for (std::ifstream file("/proc/self/cgroup"); std::getline(file, line);)
    if (line.starts_with("0::")) group = line.substr(3);
  for (fs::path folder = group;; folder = folder.parent_path()) {
    if (std::ifstream file(control_groups / folder.relative_path() / name); file) f(file);
    if (!folder.has_relative_path()) break;
  }
}

// The smallest quota from this process's control group up to the root; 0: none. "max 100000" or "150000 100000".
double cores_by_quota() {
  double cores = 0;
  const auto take = [&](double quota, double period) {
    if (quota > 0 && period > 0) cores = cores == 0 ? quota / period : std::min(cores, quota / period);
  };
  in_control_groups("cpu.max", [&](std::ifstream& file) {
    if (double quota = 0, period = 0; file >> quota >> period) take(quota, period);
  });
  const fs::path version_1 = control_groups / "cpu";
  take(std::atof(first_line(version_1 / "cpu.cfs_quota_us").c_str()),
       std::atof(first_line(version_1 / "cpu.cfs_period_us").c_str()));
  return cores;
}

}  // namespace

int64_t allowed_cores() {
  const double quota = cores_by_quota();
  const int64_t cores = cores_by_affinity();
  return quota > 0 ? std::clamp<int64_t>(std::llround(std::ceil(quota)), 1, cores) : cores;
}

int64_t machine_memory() {
  int64_t bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const auto take = [&](std::ifstream& file) {
    if (int64_t limit = 0; file >> limit && limit > 0) bytes = std::min(bytes, limit);  // "max" is no number
  };
  in_control_groups("memory.max", take);
  if (std::ifstream file(control_groups / "memory/memory.limit_in_bytes"); file) take(file);
  return bytes;
}

std::string affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return fmt::format("0-{}", omp_get_num_procs() - 1);
  std::string text;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &set)) continue;
    const int first = core;
    while (core + 1 < CPU_SETSIZE && CPU_ISSET(core + 1, &set)) ++core;
    text += fmt::format("{}{}", text.empty() ? "" : ",", first);
    if (core > first) text += fmt::format("-{}", core);
  }
  return text;
}

int64_t host_cores() { return sysconf(_SC_NPROCESSORS_ONLN); }

double host_load() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

int64_t default_threads(int64_t sharing) {
  if (std::getenv("OMP_NUM_THREADS")) return omp_get_max_threads();
  return std::max<int64_t>(1, allowed_cores() / std::max<int64_t>(1, sharing));
}

std::string processor_name() {
  std::string line;
  for (std::ifstream file("/proc/cpuinfo"); std::getline(file, line);)
    if (const auto colon = line.find(": "); line.starts_with("model name") && colon != std::string::npos)
      return line.substr(colon + 2);
  utsname system{};
  return uname(&system) == 0 ? system.machine : "unknown";
}

std::string host_name() {
  utsname system{};
  return uname(&system) == 0 ? system.nodename : "unknown";
}

std::string source_commit() {
  return commit_of(ADDER_SOURCE);  // not from where a program runs, which may be another repository
}

std::string commit_of(const std::string& root) {
  fs::path git = fs::path(root) / ".git";
  std::error_code error;
  if (fs::is_regular_file(git, error)) {  // a linked worktree: "gitdir: PATH"
    const std::string line = first_line(git);
    git = line.starts_with("gitdir: ") ? fs::path(root) / line.substr(8) : fs::path();
  }
  fs::path common = git;
  if (const std::string line = first_line(git / "commondir"); !line.empty()) common = git / line;
  std::string head = first_line(git / "HEAD");
  if (head.starts_with("ref: ")) {
    const std::string ref = head.substr(5);
    head = first_line(common / ref);
    std::string line;
    for (std::ifstream packed(common / "packed-refs"); head.empty() && std::getline(packed, line);)
      if (line.ends_with(" " + ref)) head = line.substr(0, line.find(' '));
  }
  const bool commit = head.size() >= 40 && head.find_first_not_of("0123456789abcdef") == std::string::npos;
  return commit ? head : "unknown";
}

}  // namespace adder
