// The only <<<>>>, and its like for kernels of a few microseconds, which start before the one ahead of them is done.
//
// Between two kernels of a stream the GPU drains and fills again, which takes about as long as a small kernel's work.
// One of launch_early() is already on the GPU when the one ahead of it ends. What that asks of it:
//
//   let_next_start();         // first thing, by all threads, of any kernel: the next one may be put on the GPU
//   prefetch(weight, bytes);  // what it will read, into the L2 cache, which is right whoever writes it meanwhile
//   wait_for_previous();      // by all threads, before anything is read or written, weights too
//
// What it reads comes by plain loads: __ldg and ld.global.nc are for what nobody writes while a kernel is on the GPU.
// wait_for_previous() returns when the kernel ahead has ended and what it wrote is there. As that one waited too, so
// have all before it: a kernel ends after all before it, and whatever follows it (a launch(), a copy, an event, memory
// that is handed on) finds the stream as if nothing had started early. A kernel that does not wait must therefore be
// started by launch(). One that does can be started by either, and after launch() it finds no one to wait for.
#pragma once

#include "adder/core/cuda.cuh"
#include "adder/core/device.h"

#include <cstdint>

namespace adder {

/// Whether this GPU, its driver and this build know of early starts.
bool can_start_early();
/// Raises the limit of dynamic shared memory where `shared` bytes and the kernel's own, up to 16 KiB, may pass 48 KiB.
inline void raise_shared(const void* kernel, int64_t shared) {
  if (shared > 32 * 1024)
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                 kernel);
}

/// Starts kernel(args...) on the stream of `on`, with `shared` bytes of dynamic shared memory. An empty grid does
/// nothing. Throws, naming the kernel, if it cannot start; an error inside the kernel shows at the next synchronize()
/// or copy to the host.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared, Cuda on, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto* function = reinterpret_cast<const void*>(kernel);
  raise_shared(function, shared);
  kernel<<<grid, block, static_cast<size_t>(shared), on.stream>>>(args...);
  check_launch(cudaGetLastError(), function);
}

inline constexpr bool early_starts = true;  // false: to see what they bring
inline constexpr int64_t early_rows = 64;   // of a kernel that is also one of training: more rows hide the start anyway
/// The same, early where the GPU can (Hopper and later): for kernels that keep the rule above.
template <class... Parameters, class... Args>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared, Cuda on, const Args&... args) {
  if (!early_starts || !can_start_early()) return launch(kernel, grid, block, shared, on, args...);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto* function = reinterpret_cast<const void*>(kernel);
  raise_shared(function, shared);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t how{};
  how.gridDim = grid;
  how.blockDim = block;
  how.dynamicSmemBytes = static_cast<size_t>(shared);
  how.stream = on.stream;
  how.attrs = &early;
  how.numAttrs = 1;
  check_launch(cudaLaunchKernelEx(&how, kernel, args...), function);
}

/// Blocks of `size` that cover n things; throws when a grid cannot have as many.
inline unsigned blocks(int64_t n, int64_t size) {
  const int64_t count = (n + size - 1) / size;
  if (count > 0x7fffffff) fail("a grid of more than 2^31 - 1 blocks");
  return static_cast<unsigned>(count);
}

__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The line of one address; and `bytes` from a multiple of 16 on, a multiple of 16 themselves, by one thread.
__device__ inline void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
__device__ inline void prefetch(const void* from, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

}  // namespace adder
