// Tensor core products of bf16 tiles in shared memory: mma.m16n8k16, sums in f32.
//
// A lane of a warp holds, with r = lane / 4 and q = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   Left  (16 x 16): r[0] row r, columns 2q, 2q+1;   r[1] row r+8;   r[2] row r, columns 2q+8, 2q+9;   r[3] row r+8
//   Sum   (16 x 8):  s[0], s[1] row r, columns 2q, 2q+1;   s[2], s[3] row r+8
#pragma once

#include "adder/core/elements.cuh"

namespace adder::mma {

__device__ inline int lane() { return static_cast<int>(threadIdx.x % 32); }

/// The same, but unknown to the compiler: it would keep each address made of it in a register over a whole loop.
__device__ inline int lane_again() {
  int l = lane();
  asm volatile("" : "+r"(l));
  return l;
}

/// A row-major tile of bf16, 64 or 128 columns wide. The 16-byte pieces of a row are exchanged by the row's number, so
/// that the same piece of eight rows lies in different banks. Columns of operands are multiples of 16, and are put
/// together with | where + would do: an exclusive or of constants costs the address no instruction.
template <int columns>
struct Tile {
  bf16* data;
  __device__ bf16* at(int row, int column) const {
    return data + row * columns + (column ^ (row % 8 * 8));
  }
};

struct Left {
  uint32_t r[4];
};
/// Two neighbouring right operands, 16 x 8 each.
struct Right {
  uint32_t r[4];
};

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

template <bool transposed>
__device__ void load_matrices(uint32_t (&r)[4], const bf16* row) {
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

/// Rows [row, row + 16) and columns [k, k + 16) of the tile.
template <int columns>
__device__ Left left(Tile<columns> t, int row, int k) {
  Left a;
  load_matrices<false>(a.r, t.at(row + lane() % 16, k | lane() / 16 * 8));
  return a;
}
/// The same of the tile's transpose: the tile holds [k, row].
template <int columns>
__device__ Left left_transposed(Tile<columns> t, int row, int k) {
  Left a;
  load_matrices<true>(a.r, t.at(k + lane() % 8 + lane() / 16 * 8, row | lane() / 8 % 2 * 8));
  return a;
}
/// Columns [column, column + 16) of a right operand that the tile holds by columns: [column, k].
template <int columns>
__device__ Right right(Tile<columns> t, int column, int k) {
  Right b;
  load_matrices<false>(b.r, t.at(column + lane() % 8 + lane() / 16 * 8, k | lane() / 8 % 2 * 8));
  return b;
}
/// The same where the tile holds it by rows: [k, column].
template <int columns>
__device__ Right right_transposed(Tile<columns> t, int column, int k) {
  Right b;
  load_matrices<true>(b.r, t.at(k + lane() % 16, column | lane() / 16 * 8));
  return b;
}

/// sum += a b, with b the half (0 or 1) of a pair.
__device__ inline void multiply_add(float (&sum)[4], const Left& a, const Right& b, int half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[2 * half]), "r"(b.r[2 * half + 1]));
}

/// Two neighbours, `low` at the lower address.
__device__ inline uint32_t pack(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ inline float2 unpack(uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}
__device__ inline float2 load_pair(const bf16* p) { return unpack(*reinterpret_cast<const uint32_t*>(p)); }
__device__ inline void store_pair(bf16* p, float low, float high) { *reinterpret_cast<uint32_t*>(p) = pack(low, high); }

// Copies to shared memory that run beside the arithmetic, 16, 8 or 4 bytes each.

/// Zeros if not `there`; `from` is then not read but must be an address.
template <int bytes = 16>
__device__ void copy_async(void* to, const void* from, bool there) {
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? bytes : 0), "n"(bytes)
                 : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits for this thread's copies; a barrier makes them visible to the others.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// The first `rows` rows of `width` elements, `stride` apart, into a tile of 64 rows; zeros around them. By all
/// threads.
template <int threads, int columns>
__device__ void copy_tile_async(Tile<columns> to, const bf16* from, int64_t stride, int rows, int width) {
  constexpr int pieces = columns / 8,
                step = threads / pieces;  // rows at a time; the exchange of pieces repeats after 8
  static_assert(threads % pieces == 0 && step % 8 == 0 && 64 % step == 0);
  const int row = static_cast<int>(threadIdx.x) / pieces, column = static_cast<int>(threadIdx.x) % pieces * 8;
  bf16* target = to.at(row, column);
  const bf16* source = from + row * stride + column;
#pragma unroll
  for (int r = 0; r < 64; r += step) {
    const bool there = row + r < rows && column < width;
    copy_async(target + r * columns, there ? source : from, there);
    source += step * stride;
  }
}

}  // namespace adder::mma
