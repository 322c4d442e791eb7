// Hopper's products of a warpgroup (four warps): wgmma.m64nNk16, bf16 factors, sums in f32, run beside the arithmetic.
//
// The left operand has 64 rows, 16 of each warp; it comes from registers (mma::Left: each warp its own rows) or from
// shared memory, the right operand always from there. A warp holds its 16 rows of the sums as mma.m16n8k16 does:
// s[t] is the Sum of columns [8 t, 8 t + 8) in mma.cuh's words.
//
// In shared memory an operand is a panel: rows of 64 elements, 128 bytes, with the 16-byte pieces of a row exchanged by
// the row's number (mma::Tile<64>; the hardware's 128-byte swizzle), on a boundary of 1024 bytes. Wider tiles are
// several panels, one behind the other. The sum over k runs along the rows of an operand or across them.
//
//   begin();                          registers that products read or add to were written before
//   multiply_add(s, a, b);  ...       any number of them
//   commit();  wait<0>(s, ...);       then s may be read, and operands written over
//
// Shared memory that was written by stores or by cp.async must be shown to products: published() by every thread that
// wrote, then a barrier, then begin(). PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once

#include "adder/core/cuda.cuh"
#include "adder/kernels/mma.cuh"

namespace adder::wgmma {

using mma::Left;

inline constexpr int panel = 64;               // elements of a row of a panel
inline constexpr int panel_size = 64 * panel;  // elements of one of 64 rows

/// Whether this process's GPU has them. Kernels that use them stand in files named *_sm90.cu.
inline bool available() {
  static const bool hopper = [] {
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "the GPU");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "the GPU's capability");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "the GPU's capability");
    return major == 9 && minor == 0;
  }();
  return hopper;
}

/// Where an operand lies, as the hardware wants it told: strides in bytes, as the two kinds below have them.
struct Operand {
  uint64_t bits;
  /// `offset` a multiple of 16; it is added last, so that operands of one panel differ by a constant.
  __device__ static Operand at(const bf16* panel, int offset, uint32_t leading, uint32_t stride) {
    constexpr uint32_t exchanged_128_bytes = uint32_t{1} << 30;
    const uint32_t begin = leading >> 4 << 16 | (mma::shared_address(panel) & 0x3ffff) >> 4;
    const uint32_t low = begin + static_cast<uint32_t>(offset >> 4);
    return {uint64_t{exchanged_128_bytes | stride >> 4} << 32 | low};
  }
  /// So many bytes further on: cheaper than an address of its own.
  __device__ Operand operator+(uint32_t bytes) const { return {bits + (bytes >> 4)}; }
};

/// The rows of a panel are rows (left) or columns (right) of the product; k runs along them: columns [k, k + 16).
__device__ inline Operand along_k(const bf16* data, int k) { return Operand::at(data, k * 2, 16, 1024); }
/// Rows [k, k + 16) of panels, over which the sum runs; the columns of the panel, and of the next ones `panel_bytes`
/// further on, are rows (left) or columns (right) of the product. `k` a multiple of 8.
__device__ inline Operand across_k(const bf16* data, int k, uint32_t panel_bytes = 0) {
  return Operand::at(data, k * 128, panel_bytes, 1024);
}

__device__ inline void published() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Keeps the compiler from moving what touches these sums to the other side of this point.
template <int tiles>
__device__ void hold(float (&s)[tiles][4]) {
#pragma unroll
  for (int t = 0; t < tiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(s[t][i])::"memory");
}

/// The same of a left operand that ordinary code has made.
template <int count>
__device__ void hold(Left (&a)[count]) {
#pragma unroll
  for (int k = 0; k < count; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[k].r[i])::"memory");
}

/// Until at most `pending` of the committed groups are under way; the sums named may then be read.
template <int pending, class... Sums>
__device__ void wait(Sums&... sums) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
  (hold(sums), ...);
}

/// The first `rows` rows of `width` elements, `stride` apart, into panels of 64 rows, the beginnings of which lie
/// `apart` elements from each other; zeros around them. By all threads.
template <int threads, int columns, int apart = 64 * panel>
__device__ void copy_panels_async(bf16* to, const bf16* from, int64_t stride, int rows, int width) {
#pragma unroll
  for (int n = 0; n < columns / panel; ++n)
    mma::copy_tile_async<threads>(mma::Tile<panel>{to + n * apart}, from + n * panel, stride, rows,
                                  width - n * panel);
}

}  // namespace adder::wgmma
