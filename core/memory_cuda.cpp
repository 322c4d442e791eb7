#include "adder/core/block.h"
#include "adder/core/cuda.cuh"

namespace adder {

void* take_block(Cuda on, int64_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMallocAsync(&block, static_cast<size_t>(bytes), on.stream);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "memory on the GPU");
  return block;
}

void give_back_block(Cuda on, void* block) { check(cudaFreeAsync(block, on.stream), "memory on the GPU"); }

}  // namespace adder
