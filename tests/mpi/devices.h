// Where the tests of several processes compute.
#pragma once

#include "adder/core/device.h"
#include "adder/distributed/gpus.h"

#include <iostream>
#include <vector>

/// The CPU; and a GPU for each process, if there are as many. Every rank makes the call.
inline std::vector<adder::Device> devices() {
  using namespace adder;
  static const std::vector<Device> all = [] {
    const Communicator world = Communicator::world();
    const GpuShares shares = share_gpus(world);
    if (shares.own.empty()) {
      if (built_with_cuda) std::cout << "skipped: the tests on GPUs (" << shares.shortage << ")\n";
      return std::vector{Device::cpu};
    }
    std::cout << shares.text << "\n";
    choose_gpu(shares.own[static_cast<size_t>(world.rank())]);
    return std::vector{Device::cpu, Device::cuda};
  }();
  return all;
}
