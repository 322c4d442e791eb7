// Floor: the latency of a block that reads a row, 200 KB of 50288 columns; more rows go beside each other.
#include "adder/kernels/arg_max.h"

#include "adder/core/elements.cuh"
#include "adder/core/launch.cuh"
#include "adder/kernels/warp.cuh"

namespace adder {
namespace {

constexpr int threads = 1024, n = 4;
constexpr int ahead = 7;  // pieces of a thread under way: half of its share of 50288 columns

// What is to be found has the largest key: the number in the upper half, in the order of integers, what is no number of
// the order above all; in the lower half the column, the lowest one largest.
using Key = unsigned long long;
constexpr unsigned fault = 0xffffffffu, minus_infinity = 0x007fffffu;

__device__ Key key_of(float x, unsigned column) {
  const unsigned bits = x == 0.0f ? 0u : __float_as_uint(x);  // -0 is 0
  unsigned order = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  if (!(x < __int_as_float(0x7f800000))) order = fault;
  return static_cast<Key>(order) << 32 | (0xffffffffu - column);
}

__device__ Key warp_max(Key x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(all_lanes, x, step));
  return x;
}

__global__ void __launch_bounds__(threads) find(const float* x, int64_t stride, int columns, bool whole, int32_t* to) {
  __shared__ Key parts[threads / 32];
  const float* const row = x + blockIdx.x * stride;
  const int thread = static_cast<int>(threadIdx.x), pieces = whole ? columns / n : 0;
  let_next_start();
  wait_for_previous();
  Key best = 0;
  for (int first = thread; first < pieces; first += ahead * threads) {
    float4 v[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (first + i * threads < pieces)
        v[i] = *reinterpret_cast<const float4*>(row + (first + int64_t{i} * threads) * n);
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (first + i * threads >= pieces) break;
      const auto column = static_cast<unsigned>(first + i * threads) * n;
      best = max(best, max(max(key_of(v[i].x, column), key_of(v[i].y, column + 1)),
                           max(key_of(v[i].z, column + 2), key_of(v[i].w, column + 3))));
    }
  }
  for (int j = pieces * n + thread; j < columns; j += threads)
    best = max(best, key_of(row[j], static_cast<unsigned>(j)));
  best = warp_max(best);
  if (thread % 32 == 0) parts[thread / 32] = best;
  __syncthreads();
  if (thread >= 32) return;
  best = warp_max(parts[thread]);
  if (thread != 0) return;
  const auto order = static_cast<unsigned>(best >> 32);
  const int column = static_cast<int>(0xffffffffu - static_cast<unsigned>(best));
  to[blockIdx.x] = order == fault ? -2 - column : order <= minus_infinity ? -1 : column;
}

}  // namespace

void arg_max(Cuda on, const Tensor& x, const Tensor& to) {
  const int64_t columns = x.size(1), stride = x.stride(columns);
  const float* const data = x.data<float>();
  const bool whole = reinterpret_cast<uintptr_t>(data) % 16 == 0 && (stride % n == 0 || x.size(0) == 1);
  launch_early(find, blocks(x.size(0), 1), threads, 0, on, data, stride, static_cast<int>(columns), whole,
         to.data<int32_t>());
}

}  // namespace adder
