// Which process computes on which GPU. A process has one GPU to itself.
#pragma once

#include "adder/distributed/communicator.h"

#include <string>
#include <vector>

namespace adder {

/// What a process may use: its host and the GPUs that answer it there, in the order of their numbers. A GPU has the
/// same name for every process and no other one has it, whatever number it has for whom (CUDA_VISIBLE_DEVICES).
struct SeenGpus {
  std::string host;
  std::vector<std::string> gpus;
};

struct GpuShares {
  std::vector<int> own;  // by rank: the number of its GPU among those that it sees. None if one rank has none
  std::string shortage;  // why: "4 processes on node1 but 2 GPUs"
  std::string text;      // "ranks 0, 1 on GPUs 0, 1 of node1; ranks 2, 3 on GPUs 0, 1 of node2"
};

/// Each rank takes the first GPU it sees that no lower rank has: where all processes of a host see all its GPUs, the
/// k-th of them gets GPU k.
GpuShares share_gpus(const std::vector<SeenGpus>& ranks);
/// The same for the processes of a group, which all make the call. A build without NCCL sees no GPU: its processes
/// could not talk there.
GpuShares share_gpus(const Communicator& group);

}  // namespace adder
