// Checked calls of the CUDA runtime, for .cu files and for the .cpp files named *_cuda.cpp. Neither fmt nor
// core/error.h comes in here: fmt 9 does not compile under nvcc in C++20.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>

namespace adder {

/// Throws unless the call succeeded: check(cudaStreamCreate(&s), "a new stream") says "a new stream: out of memory".
void check(cudaError_t status, const char* what, std::source_location at = std::source_location::current());
/// The same for a launch, which names the kernel.
void check_launch(cudaError_t status, const void* kernel, std::source_location at = std::source_location::current());
/// Loads a kernel of this build on the current GPU; and what GPUs its kernels are made for: "9.0".
cudaError_t load_kernels();
std::string architectures();
/// Throws Error.
[[noreturn]] void fail(const char* sentence, std::source_location at = std::source_location::current());

}  // namespace adder
