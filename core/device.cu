// What GPUs the kernels of this build are made for.
#include "adder/core/cuda.cuh"

namespace adder {
namespace {

__global__ void nothing() {}

}  // namespace

cudaError_t load_kernels() {
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, nothing);
  cudaGetLastError();  // the caller has it
  return status;
}

std::string architectures() {
  std::string text;
  for (const int architecture : {__CUDA_ARCH_LIST__})
    text +=
        (text.empty() ? "" : ", ") + std::to_string(architecture / 100) + "." + std::to_string(architecture / 10 % 10);
  return text;
}

}  // namespace adder
