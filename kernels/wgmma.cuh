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

inline constexpr int panel = 64;  // elements of a row of a panel

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

/// Rows [row, row + 8 ...) of a panel, which are rows (left) or columns (right) of the product; k runs along a row:
/// columns [k, k + 16) of the panel. `row` a multiple of 8.
__device__ inline Operand along_k(const bf16* data, int row, int k) {
  return Operand::at(data, row * 128 + k * 2, 16, 1024);
}
/// Rows [k, k + 16) of panels, over which the sum runs; the columns of the panel, and of the next ones `panel_bytes`
/// further on, are rows (left) or columns (right) of the product. `k` a multiple of 8.
__device__ inline Operand across_k(const bf16* data, int k, uint32_t panel_bytes = 0) {
  return Operand::at(data, k * 128, panel_bytes, 1024);
}

__device__ inline void published() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Changes the number of registers that each thread of the warpgroup may have, from what the kernel begins with: all its
/// warpgroups together have no more than the processor. A multiple of 8.
template <int registers, int before>
__device__ void take_registers() {
  if constexpr (registers < before) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
  else asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

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

/// s += a b, or s = a b where `add` is false; 64 or 128 columns. a comes from registers (each warp its rows) or from
/// shared memory. Whether an operand is across_k is said once more, as a constant.
template <bool right_across>
__device__ void multiply_add(float (&s)[8][4], const Left& a, Operand b, bool add = true) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]),
        "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[1][2]), "+f"(s[1][3]),
        "+f"(s[2][0]), "+f"(s[2][1]), "+f"(s[2][2]), "+f"(s[2][3]),
        "+f"(s[3][0]), "+f"(s[3][1]), "+f"(s[3][2]), "+f"(s[3][3]),
        "+f"(s[4][0]), "+f"(s[4][1]), "+f"(s[4][2]), "+f"(s[4][3]),
        "+f"(s[5][0]), "+f"(s[5][1]), "+f"(s[5][2]), "+f"(s[5][3]),
        "+f"(s[6][0]), "+f"(s[6][1]), "+f"(s[6][2]), "+f"(s[6][3]),
        "+f"(s[7][0]), "+f"(s[7][1]), "+f"(s[7][2]), "+f"(s[7][3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b.bits), "r"(int{add}), "n"(right_across));
}
template <bool left_across, bool right_across>
__device__ void multiply_add(float (&s)[8][4], Operand a, Operand b, bool add = true) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, %35, %36;\n}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]),
        "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[1][2]), "+f"(s[1][3]),
        "+f"(s[2][0]), "+f"(s[2][1]), "+f"(s[2][2]), "+f"(s[2][3]),
        "+f"(s[3][0]), "+f"(s[3][1]), "+f"(s[3][2]), "+f"(s[3][3]),
        "+f"(s[4][0]), "+f"(s[4][1]), "+f"(s[4][2]), "+f"(s[4][3]),
        "+f"(s[5][0]), "+f"(s[5][1]), "+f"(s[5][2]), "+f"(s[5][3]),
        "+f"(s[6][0]), "+f"(s[6][1]), "+f"(s[6][2]), "+f"(s[6][3]),
        "+f"(s[7][0]), "+f"(s[7][1]), "+f"(s[7][2]), "+f"(s[7][3])
      : "l"(a.bits), "l"(b.bits), "r"(int{add}), "n"(left_across), "n"(right_across));
}
template <bool right_across>
__device__ void multiply_add(float (&s)[16][4], const Left& a, Operand b, bool add = true) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]),
        "+f"(s[1][0]), "+f"(s[1][1]), "+f"(s[1][2]), "+f"(s[1][3]),
        "+f"(s[2][0]), "+f"(s[2][1]), "+f"(s[2][2]), "+f"(s[2][3]),
        "+f"(s[3][0]), "+f"(s[3][1]), "+f"(s[3][2]), "+f"(s[3][3]),
        "+f"(s[4][0]), "+f"(s[4][1]), "+f"(s[4][2]), "+f"(s[4][3]),
        "+f"(s[5][0]), "+f"(s[5][1]), "+f"(s[5][2]), "+f"(s[5][3]),
        "+f"(s[6][0]), "+f"(s[6][1]), "+f"(s[6][2]), "+f"(s[6][3]),
        "+f"(s[7][0]), "+f"(s[7][1]), "+f"(s[7][2]), "+f"(s[7][3]),
        "+f"(s[8][0]), "+f"(s[8][1]), "+f"(s[8][2]), "+f"(s[8][3]),
        "+f"(s[9][0]), "+f"(s[9][1]), "+f"(s[9][2]), "+f"(s[9][3]),
        "+f"(s[10][0]), "+f"(s[10][1]), "+f"(s[10][2]), "+f"(s[10][3]),
        "+f"(s[11][0]), "+f"(s[11][1]), "+f"(s[11][2]), "+f"(s[11][3]),
        "+f"(s[12][0]), "+f"(s[12][1]), "+f"(s[12][2]), "+f"(s[12][3]),
        "+f"(s[13][0]), "+f"(s[13][1]), "+f"(s[13][2]), "+f"(s[13][3]),
        "+f"(s[14][0]), "+f"(s[14][1]), "+f"(s[14][2]), "+f"(s[14][3]),
        "+f"(s[15][0]), "+f"(s[15][1]), "+f"(s[15][2]), "+f"(s[15][3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b.bits), "r"(int{add}), "n"(right_across));
}

/// Two products with the left operand in common, which is then read once: the right operands lie one under the other
/// in panels of 128 rows, those of `low` first.
template <bool left_across>
__device__ void multiply_add(float (&low)[8][4], float (&high)[8][4], Operand a, Operand b, bool add = true) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, %67, 0;\n}\n"
      : "+f"(low[0][0]), "+f"(low[0][1]), "+f"(low[0][2]), "+f"(low[0][3]),
        "+f"(low[1][0]), "+f"(low[1][1]), "+f"(low[1][2]), "+f"(low[1][3]),
        "+f"(low[2][0]), "+f"(low[2][1]), "+f"(low[2][2]), "+f"(low[2][3]),
        "+f"(low[3][0]), "+f"(low[3][1]), "+f"(low[3][2]), "+f"(low[3][3]),
        "+f"(low[4][0]), "+f"(low[4][1]), "+f"(low[4][2]), "+f"(low[4][3]),
        "+f"(low[5][0]), "+f"(low[5][1]), "+f"(low[5][2]), "+f"(low[5][3]),
        "+f"(low[6][0]), "+f"(low[6][1]), "+f"(low[6][2]), "+f"(low[6][3]),
        "+f"(low[7][0]), "+f"(low[7][1]), "+f"(low[7][2]), "+f"(low[7][3]),
        "+f"(high[0][0]), "+f"(high[0][1]), "+f"(high[0][2]), "+f"(high[0][3]),
        "+f"(high[1][0]), "+f"(high[1][1]), "+f"(high[1][2]), "+f"(high[1][3]),
        "+f"(high[2][0]), "+f"(high[2][1]), "+f"(high[2][2]), "+f"(high[2][3]),
        "+f"(high[3][0]), "+f"(high[3][1]), "+f"(high[3][2]), "+f"(high[3][3]),
        "+f"(high[4][0]), "+f"(high[4][1]), "+f"(high[4][2]), "+f"(high[4][3]),
        "+f"(high[5][0]), "+f"(high[5][1]), "+f"(high[5][2]), "+f"(high[5][3]),
        "+f"(high[6][0]), "+f"(high[6][1]), "+f"(high[6][2]), "+f"(high[6][3]),
        "+f"(high[7][0]), "+f"(high[7][1]), "+f"(high[7][2]), "+f"(high[7][3])
      : "l"(a.bits), "l"(b.bits), "r"(int{add}), "n"(left_across));
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
