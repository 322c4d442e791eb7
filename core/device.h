// Where a tensor lives and how a kernel is chosen for it: a backend is an overload.
//
//   void scale(Cpu, ...);   in scale.cpp        void scale(Cuda, ...);   in scale.cu
//   on(x.device(), [&](auto backend) { scale(backend, ...); });
//
// A build without CUDA never instantiates the Cuda branch, so it needs no stubs, and a kernel that is missing on one
// backend is a link error and not a run-time surprise.
#pragma once

#include <cstdint>
#include <string>

struct CUstream_st;

namespace adder {

enum class Device : unsigned char { cpu, cuda };

/// The CPU backend.
struct Cpu {};
/// The CUDA backend: the tag is the launch context.
struct Cuda {
  CUstream_st* stream;
};

#ifdef ADDER_WITH_CUDA
inline constexpr bool built_with_cuda = true;
#else
inline constexpr bool built_with_cuda = false;
#endif

const char* name(Device device);
/// Throws: this build has no CUDA.
[[noreturn]] void no_cuda();

/// GPUs that answer; 0 in a build without CUDA.
int gpu_count();
/// Why none answers, though there is a driver; otherwise empty.
std::string gpu_fault();
/// What tells a GPU from all others, whatever number it has for which process.
std::string gpu_id(int index);
/// The GPU of this process, to be chosen before the first tensor on it, as distributed/gpus.h says; GPU 0 otherwise.
void choose_gpu(int index);
/// The chosen one, or one of those that answer: "NVIDIA H100 80GB HBM3, 79.2 GiB, driver for CUDA 13.0, runtime 13.0".
std::string describe_gpu();
std::string describe_gpu(int index);
/// The chosen one's name: "NVIDIA H100 80GB HBM3"; and the bytes of its memory.
std::string gpu_name();
int64_t gpu_memory();

/// The stream that kernels of this process run on (the first call opens the GPU, and throws if this build is made for
/// another kind of it), and those of collectives and of copies beside the kernels. Memory
/// that is let go may be handed out at once for later work on the compute stream: who reads or writes it on another
/// stream makes the compute stream wait before letting go.
CUstream_st* compute_stream();
CUstream_st* communication_stream();
CUstream_st* copy_stream();
/// Waits for all work on the compute stream; an error in it is thrown here.
void synchronize();

/// Calls f(Cpu{}) or f(Cuda{stream}).
template <class F>
decltype(auto) on(Device device, F&& f) {
  if constexpr (built_with_cuda) {
    if (device == Device::cuda) return f(Cuda{compute_stream()});
  } else {
    if (device == Device::cuda) no_cuda();
  }
  return f(Cpu{});
}

}  // namespace adder
