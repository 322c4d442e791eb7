// The products of wgmma.cuh, instruction by instruction.
#pragma once

#include "adder/kernels/wgmma.cuh"

namespace adder::wgmma {

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

}  // namespace adder::wgmma
