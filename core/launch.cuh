// The only <<<>>>.
#pragma once

#include "adder/core/cuda.cuh"
#include "adder/core/device.h"

#include <cstdint>

namespace adder {

/// Starts kernel(args...) on the stream of `on`, with `shared` bytes of dynamic shared memory, whose limit is raised
/// where these and the kernel's own, up to 16 KiB, may pass 48 KiB. An empty grid does nothing. Throws, naming the
/// kernel, if it cannot start; an error inside the kernel shows at the next synchronize() or copy to the host.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared, Cuda on, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (shared > 32 * 1024)
    check_launch(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                 function);
  kernel<<<grid, block, static_cast<size_t>(shared), on.stream>>>(args...);
  check_launch(cudaGetLastError(), function);
}

/// Blocks of `size` that cover n things; throws when a grid cannot have as many.
inline unsigned blocks(int64_t n, int64_t size) {
  const int64_t count = (n + size - 1) / size;
  if (count > 0x7fffffff) fail("a grid of more than 2^31 - 1 blocks");
  return static_cast<unsigned>(count);
}

}  // namespace adder
