// What GPUs the kernels of this build are made for.
#include "adder/core/cuda.cuh"
#include "adder/core/launch.cuh"

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

bool can_start_early() {
  static const bool can = [] {
    if (CUDART_VERSION < 12030) return false;  // graphs cannot record it
    cudaFuncAttributes attributes{};
    int driver = 0;
    const bool known = cudaFuncGetAttributes(&attributes, nothing) == cudaSuccess &&
                       cudaDriverGetVersion(&driver) == cudaSuccess;
    cudaGetLastError();
    // Code made for less does not wait, whatever GPU it runs on.
    return known && attributes.ptxVersion >= 90 && driver >= 12030;
  }();
  return can;
}

std::string architectures() {
  std::string text;
  for (const int architecture : {__CUDA_ARCH_LIST__})
    text +=
        (text.empty() ? "" : ", ") + std::to_string(architecture / 100) + "." + std::to_string(architecture / 10 % 10);
  return text;
}

}  // namespace adder
