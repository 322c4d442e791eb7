// Sums of rows and columns of products that lie over a warp's lanes, and rows of tiles as they lie in registers.
#pragma once

#include "adder/kernels/mma.cuh"
#include "adder/kernels/warp.cuh"

namespace adder::mma {

// The sum over the four lanes that hold a row.
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(all_lanes, x, 1);
  return x + __shfl_xor_sync(all_lanes, x, 2);
}
// Columns of four tiles, numbered x[2 tile + odd], summed over the eight lanes that hold them: each lane gets one sum.
// Of two lanes that exchange, each hands over the half that the other keeps.
__device__ inline float column_sum(const float (&x)[8]) {
  const bool far = lane() & 16, middle = lane() & 8, near = lane() & 4;
  float y[4], z[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) y[i] = (far ? x[i + 4] : x[i]) + __shfl_xor_sync(all_lanes, far ? x[i] : x[i + 4], 16);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    z[i] = (middle ? y[i + 2] : y[i]) + __shfl_xor_sync(all_lanes, middle ? y[i] : y[i + 2], 8);
  return (near ? z[1] : z[0]) + __shfl_xor_sync(all_lanes, near ? z[0] : z[1], 4);
}
// The column, of the 32, whose sum that is.
__device__ inline int column_of_lane() { return lane() / 8 * 8 + lane() % 4 * 2 + lane() / 4 % 2; }

// 16 rows of a tile of 64 columns as left operands. Their word i of k is what sums have in tile 2 k + i / 2 and row
// i % 2: f(k, i, tile, row).
template <class F>
__device__ void each_word(F&& f) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) f(k, i, 2 * k + i / 2, i % 2);
}
// Addresses of a row's pieces differ by an exclusive or of constants.
__device__ inline uint32_t rows_at(bf16* tile, int row) {
  return shared_address(Tile<64>{tile}.at(row + lane() % 16, lane() / 16 * 8));
}
__device__ inline void load_at(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ inline void load_rows(Left (&to)[4], bf16* tile, int row) {
  const uint32_t address = rows_at(tile, row);
#pragma unroll
  for (int k = 0; k < 4; ++k) load_at(to[k].r, address ^ k * 32);
}
__device__ inline void store_rows(const Left (&a)[4], bf16* tile, int row) {
  const uint32_t address = rows_at(tile, row);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address ^ k * 32),
                 "r"(a[k].r[0]), "r"(a[k].r[1]), "r"(a[k].r[2]), "r"(a[k].r[3])
                 : "memory");
}
// The products of rows of sums with those of a, added up.
__device__ inline void row_products(float (&dots)[2], const float (&s)[8][4], const Left (&a)[4]) {
  dots[0] = dots[1] = 0;
  each_word([&](int k, int i, int t, int row) {
    const float2 x = unpack(a[k].r[i]);
    dots[row] += s[t][2 * row] * x.x;
    dots[row] += s[t][2 * row + 1] * x.y;
  });
  dots[0] = row_sum(dots[0]);
  dots[1] = row_sum(dots[1]);
}

}  // namespace adder::mma
