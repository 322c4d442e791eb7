#include "adder/core/block.h"
#include "adder/core/captured.h"
#include "adder/core/cuda.cuh"

namespace adder {

void* take_block(Cuda on, int64_t bytes) {
  // Asked of a stream that is being captured, the block would be the graph's to take and to give back at each replay.
  // The copy stream is never captured; once it is done, the block is there for every stream.
  const cudaStream_t stream = capturing() ? copy_stream() : on.stream;
  void* block = nullptr;
  const cudaError_t status = cudaMallocAsync(&block, static_cast<size_t>(bytes), stream);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "memory on the GPU");
  if (stream != on.stream) check(cudaStreamSynchronize(stream), "memory on the GPU");
  return block;
}

void give_back_block(Cuda on, void* block) { check(cudaFreeAsync(block, on.stream), "memory on the GPU"); }

}  // namespace adder
