// Reductions and scans over a warp and a block of one dimension, of whole warps. Their order is fixed by the number of
// threads, so that the same numbers give the same bits.
#pragma once

namespace adder {

inline constexpr unsigned all_lanes = 0xffffffffu;

/// The sum over the warp, on every lane.
template <class T>
__device__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, step));
  return x;
}

/// The sum over this lane and the lanes before it.
template <class T>
__device__ T warp_scan(T x) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(all_lanes, x, step);
    if (lane >= step) x += before;
  }
  return x;
}

/// k sums over the block, on every thread.
template <int k, class T>
__device__ void block_sum(T (&x)[k]) {
  __shared__ T parts[k][32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int warps = static_cast<int>(blockDim.x / 32);
#pragma unroll
  for (int i = 0; i < k; ++i) x[i] = warp_sum(x[i]);
  if (warps == 1) return;
  __syncthreads();  // the last sums have been read
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < k; ++i) parts[i][warp] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < k; ++i) x[i] = warp_sum(lane < warps ? parts[i][lane] : T(0));
}

/// The sum over this thread and those before it; `total` becomes that over the block.
template <class T>
__device__ T block_scan(T x, T& total) {
  __shared__ T parts[32];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  x = warp_scan(x);
  __syncthreads();  // the last scan has been read
  if (lane == 31) parts[warp] = x;
  __syncthreads();
  const T sums = warp_scan(lane < warps ? parts[lane] : T(0));  // the same in every warp
  total = __shfl_sync(all_lanes, sums, 31);
  const T before = __shfl_sync(all_lanes, sums, warp == 0 ? 0 : warp - 1);
  return warp == 0 ? x : x + before;
}

}  // namespace adder
