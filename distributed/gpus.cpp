#include "adder/distributed/gpus.h"

#include "adder/core/device.h"
#include "adder/distributed/machine.h"
#include "adder/distributed/nccl.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

namespace adder {
namespace {

struct Host {
  std::vector<size_t> ranks;
  std::vector<int> numbers;          // of the GPUs that they got
  std::set<std::string> gpus, taken;
};

SeenGpus seen_here() {
  SeenGpus seen{.host = host_name()};
  for (int i = 0; built_with_nccl && i < gpu_count(); ++i) seen.gpus.push_back(gpu_id(i));
  return seen;
}

}  // namespace

GpuShares share_gpus(const std::vector<SeenGpus>& ranks) {
  std::map<std::string, Host> hosts;
  GpuShares shares;
  for (size_t r = 0; r < ranks.size(); ++r) {
    const std::vector<std::string>& gpus = ranks[r].gpus;
    Host& host = hosts[ranks[r].host];
    host.ranks.push_back(r);
    host.gpus.insert(gpus.begin(), gpus.end());
    const auto mine =
        std::find_if(gpus.begin(), gpus.end(), [&](const std::string& gpu) { return !host.taken.contains(gpu); });
    if (mine == gpus.end()) continue;
    host.taken.insert(*mine);
    host.numbers.push_back(static_cast<int>(mine - gpus.begin()));
    shares.own.push_back(host.numbers.back());
  }
  for (const auto& [name, host] : hosts) {
    const size_t processes = host.ranks.size(), gpus = host.gpus.size();
    if (host.numbers.size() < processes) {
      const bool few = gpus < processes;
      return {.shortage = few ? fmt::format("{} process{} on {} but {} GPU{}", processes, processes == 1 ? "" : "es",
                                            name, gpus, gpus == 1 ? "" : "s")
                              : fmt::format("a process on {} sees no GPU that no other one has", name)};
    }
    const char* const plural = processes == 1 ? "" : "s";
    shares.text += fmt::format("{}rank{} {} on GPU{} {} of {}", shares.text.empty() ? "" : "; ", plural,
                               fmt::join(host.ranks, ", "), plural, fmt::join(host.numbers, ", "), name);
  }
  return shares;
}

GpuShares share_gpus(const Communicator& group) {
  const SeenGpus here = seen_here();
  std::vector<SeenGpus> ranks;
  for (const std::string& text : group.exchange(fmt::format("{}\n{}", here.host, fmt::join(here.gpus, "\n")))) {
    SeenGpus& seen = ranks.emplace_back();
    std::istringstream lines(text);
    std::getline(lines, seen.host);
    for (std::string gpu; std::getline(lines, gpu);) seen.gpus.push_back(gpu);
  }
  return share_gpus(ranks);
}

}  // namespace adder
