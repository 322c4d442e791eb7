// Where a tensor lives and how a kernel is chosen for it: a backend is an overload.
//
//   void scale(Cpu, ...);   in scale.cpp        void scale(Cuda, ...);   in scale.cu
//   on(x.device(), [&](auto backend) { scale(backend, ...); });
//
// A build without CUDA never instantiates the Cuda branch, so it needs no stubs, and a kernel that is missing on one
// backend is a link error and not a run-time surprise.
#pragma once

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
/// The stream that kernels of this process run on.
CUstream_st* compute_stream();
/// Throws: this build has no CUDA.
[[noreturn]] void no_cuda();

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
