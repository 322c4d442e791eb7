#include "adder/core/timer.h"

#include "adder/core/cuda.cuh"
#include "adder/core/device.h"

namespace adder {

void Timer::mark() {
  cudaEvent_t event = nullptr;
  CUstream_st* const stream = compute_stream();  // makes the GPU current
  check(cudaEventCreate(&event), "a new CUDA event");
  points_.emplace_back(event, [](cudaEvent_t e) { cudaEventDestroy(e); });
  check(cudaEventRecord(event, stream), "a CUDA event");
}

std::vector<double> Timer::milliseconds() const {
  std::vector<double> result;
  synchronize();
  for (size_t i = 0; i + 1 < points_.size(); i += 2) {
    float time = 0;
    check(cudaEventElapsedTime(&time, points_[i].get(), points_[i + 1].get()), "the time between CUDA events");
    result.push_back(static_cast<double>(time));
  }
  return result;
}

}  // namespace adder
