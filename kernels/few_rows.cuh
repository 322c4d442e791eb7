// x Wᵀ of few rows x, as in decoding, where all the time goes into reading W.
//
// A block makes 8 to 32 columns of the result, so reads as many rows of W; its warps share k, and their sums are
// added in order. Tensor cores multiply, as a thread could not convert and multiply as fast as the memory gives. The
// sum over k may go in any order that is the same for both factors, so a lane takes 16 bytes in a row, 8 numbers, for
// two products of 16: no shared memory between memory and tensor cores.
#pragma once

#include "adder/core/launch.cuh"
#include "adder/kernels/mma.cuh"

namespace adder::few_rows {

inline constexpr int piece = 8, part = 4 * piece;  // numbers of k that a lane and that a warp take at a time

/// [n, k], its rows `stride` apart; in pieces of 16 bytes.
struct Weight {
  const bf16* data;
  int64_t stride, n;
  int k;
};

/// How much of W is brought into the L2 cache before the kernel ahead is done: a third of Hopper's.
inline constexpr int64_t fetched = 16 << 20;  // bytes

/// Asks for the block's rows of W, if they are among the first of W. The lanes of a warp ask one after the other, so
/// that all warps share the rows.
template <int tiles>
__device__ void fetch(const Weight& w) {
  const unsigned mine = threadIdx.x % 32 * (blockDim.x / 32) + threadIdx.x / 32;
  const int64_t row = int64_t{blockIdx.x} * 8 * tiles + mine;
  const auto bytes = 2 * static_cast<unsigned>(w.k);
  if (blockIdx.y == 0 && mine < 8 * tiles && row < w.n && row * bytes < fetched)
    prefetch(w.data + row * w.stride, bytes);
}

/// Sixteen bytes, or zeros if not `there`: then `from` is not read. Without a branch, so that many can be under way. A
/// block reads nothing twice: it need not stay in the L1 cache. Not by way of the cache for constants (.nc): the kernel
/// ahead may still write what this one, on the GPU already, will read.
__device__ inline uint4 read(const bf16* from, bool there) {
  uint4 v;
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n"
               "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
               "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w) : "l"(from), "r"(static_cast<int>(there)));
  return v;
}

/// What this thread of a block of `warps` warps has to do with the result: one number, if `inside`.
template <int tiles>
struct Place {
  static constexpr int columns = 8 * tiles;  // of a block
  int64_t column;
  int row;
  bool inside;

  __device__ Place(int64_t n, int rows)
      : column(int64_t{blockIdx.x} * columns + threadIdx.x % columns), row(static_cast<int>(threadIdx.x) / columns),
        inside(row < rows && column < n) {}
};

/// What the warps of a block have summed up, of `halves` times eight rows.
template <int warps, int tiles, int halves>
struct Parts {
  static constexpr int rows = 8 * halves, columns = 8 * tiles;
  static constexpr int apart = columns % 16 == 0 ? columns + 8 : columns;  // so that rows lie in different banks
  alignas(8) float of[warps][rows][apart];

  __device__ float sum(int row, int column) const {
    float y = 0;
#pragma unroll
    for (int i = 0; i < warps; ++i) y += of[i][row][column];
    return y;
  }
};

/// x Wᵀ, in parts; `halves` is 1 or even. Once the first of W is on its way, it calls prepare(), which may use barriers
/// and leaves x where x(row, k) finds eight numbers of it: zeros where there is no row or k is too large.
template <int warps, int tiles, int halves, class Prepare, class X>
__device__ void multiply(Parts<warps, tiles, halves>& parts, const Weight& w, Prepare&& prepare, X&& x) {
  constexpr int columns = 8 * tiles, ahead = tiles > 2 || halves > 2 ? 2 : 3;  // parts of W under way
  constexpr int sixteens = (halves + 1) / 2;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int r = lane / 4, q = lane % 4;
  const int64_t first = int64_t{blockIdx.x} * columns + r;
  const int left = static_cast<int>(min(w.n - first, int64_t{columns}));  // rows from there on
  const bf16* const rows = w.data + first * w.stride;
  uint4 b[ahead][tiles];
  const auto load = [&](int begin, int i) {
    const int k = begin + i * warps * part + q * piece;
#pragma unroll
    for (int t = 0; t < tiles; ++t) b[i][t] = read(rows + 8 * t * w.stride + k, 8 * t < left && k < w.k);
  };
#pragma unroll
  for (int i = 0; i < ahead; ++i) load(warp * part, i);
  prepare();
  float sum[sixteens][tiles][4] = {};
  for (int begin = warp * part; begin < w.k; begin += ahead * warps * part) {  // all lanes alike
    uint4 a[ahead][halves];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
#pragma unroll
      for (int h = 0; h < halves; ++h) a[i][h] = x(r + 8 * h, begin + i * warps * part + q * piece);
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
#pragma unroll
      for (int s = 0; s < sixteens; ++s) {
        const uint4 low = a[i][2 * s], high = halves > 1 ? a[i][(2 * s + 1) % halves] : uint4{};
        const mma::Left even{{low.x, high.x, low.y, high.y}}, odd{{low.z, high.z, low.w, high.w}};
#pragma unroll
        for (int t = 0; t < tiles; ++t) {
          const mma::Right both{{b[i][t].x, b[i][t].y, b[i][t].z, b[i][t].w}};
          mma::multiply_add(sum[s][t], even, both, 0);
          mma::multiply_add(sum[s][t], odd, both, 1);
        }
      }
      load(begin + ahead * warps * part, i);
    }
  }
#pragma unroll
  for (int t = 0; t < tiles; ++t)
#pragma unroll
    for (int h = 0; h < halves; ++h)
      *reinterpret_cast<float2*>(&parts.of[warp][r + 8 * h][8 * t + 2 * q]) = {sum[h / 2][t][h % 2 * 2],
                                                                              sum[h / 2][t][h % 2 * 2 + 1]};
  __syncthreads();
}

}  // namespace adder::few_rows
