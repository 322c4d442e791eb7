// Rows of tiles as they lie in registers, by ldmatrix and by stmatrix, which came with Hopper.
#pragma once

#include "adder/kernels/ssd/fragments.cuh"

namespace adder::mma {

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
