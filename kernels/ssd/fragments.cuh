// Sums of rows and columns of products that lie over a warp's lanes.
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

}  // namespace adder::mma
