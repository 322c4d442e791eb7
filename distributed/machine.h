// Machine: what this process runs on, and what its source was.
#pragma once

#include <cstdint>
#include <string>

namespace adder {

/// Cores this process may use: by its affinity mask or its control group's quota (rounded up), whichever is less.
int64_t allowed_cores();
/// The host's cores, and how many processes wanted one in the last minute, on average; 0 where nobody counts them.
int64_t host_cores();
double host_load();
/// Whether so many keep so many cores busy with more than they can do.
constexpr bool overloaded(double load, int64_t cores) { return load > 1.5 * static_cast<double>(cores); }
/// The cores of the affinity mask: "0-3,8".
std::string affinity();
/// The number OpenMP starts with: OMP_NUM_THREADS where it is set, else the allowed cores over the processes of this
/// program that share them, at least 1.
int64_t default_threads(int64_t sharing = 1);
/// "Intel(R) Xeon(R) ...", or the machine's architecture where /proc/cpuinfo has no name.
std::string processor_name();
std::string host_name();
/// Bytes of memory, or what the control group allows of them.
int64_t machine_memory();

/// The commit that the source tree of this build is at now, read from its .git folder; "unknown" without one.
std::string source_commit();
/// The commit that the tree at `root` is at: HEAD, followed through refs, packed-refs and linked worktrees.
std::string commit_of(const std::string& root);

}  // namespace adder
