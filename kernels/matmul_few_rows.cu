// y = x Wᵀ. Floor: the weight, 2 n k bytes, at memory speed.
//
// A block makes 8 or 16 columns of y, so reads as many rows of W; its warps share k, and their sums are added in order.
// Tensor cores multiply, as a thread could not convert and multiply as fast as the memory gives. The sum over k may go
// in any order that is the same for both factors, so a lane takes 16 bytes in a row, 8 numbers, for two products of 16:
// no shared memory between memory and tensor cores.
#include "adder/kernels/matmul_few_rows.h"

#include "adder/core/launch.cuh"
#include "adder/kernels/mma.cuh"

namespace adder {
namespace {

constexpr int warps = 8, threads = 32 * warps;
constexpr int piece = 8, part = 4 * piece;  // numbers of k that a lane and that a warp take at a time
constexpr int ahead = 4;                    // parts whose loads are under way

template <class Y>
struct Few {
  const bf16 *x, *w;
  Y* y;
  const Y* bias;  // or null
  int64_t stride_x, stride_w, stride_y, n;
  int m, k;
};

// Sixteen bytes, or zeros if not `there`: then `from` is not read. Without a branch, so that many can be under way. A
// block reads nothing twice: it need not stay in the L1 cache.
__device__ uint4 read(const bf16* from, bool there) {
  uint4 v;
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n"
               "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
               "@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w) : "l"(from), "r"(static_cast<int>(there)));
  return v;
}

// tiles: of 8 columns of y. halves: of 8 rows.
template <class Y, int tiles, int halves>
__global__ void __launch_bounds__(threads) products(Few<Y> p) {
  constexpr int columns = 8 * tiles;
  __shared__ alignas(8) float parts[warps][8 * halves][columns];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int r = lane / 4, q = lane % 4;
  const int64_t n0 = int64_t{blockIdx.x} * columns;
  const bf16 *x[halves], *w[tiles];
  bool has_x[halves], has_w[tiles];
#pragma unroll
  for (int h = 0; h < halves; ++h) {
    has_x[h] = r + 8 * h < p.m;
    x[h] = p.x + (r + 8 * h) * p.stride_x;
  }
#pragma unroll
  for (int t = 0; t < tiles; ++t) {
    has_w[t] = n0 + 8 * t + r < p.n;
    w[t] = p.w + (n0 + 8 * t + r) * p.stride_w;
  }
  float sum[tiles][4] = {};
  for (int begin = warp * part; begin < p.k; begin += ahead * warps * part) {
    uint4 a[ahead][halves], b[ahead][tiles];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const int k = begin + i * warps * part + q * piece;
#pragma unroll
      for (int t = 0; t < tiles; ++t) b[i][t] = read(w[t] + k, has_w[t] && k < p.k);
#pragma unroll
      for (int h = 0; h < halves; ++h) a[i][h] = read(x[h] + k, has_x[h] && k < p.k);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const uint4 low = a[i][0], high = halves == 2 ? a[i][halves - 1] : uint4{};
      const mma::Left even{{low.x, high.x, low.y, high.y}}, odd{{low.z, high.z, low.w, high.w}};
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
        const mma::Right both{{b[i][t].x, b[i][t].y, b[i][t].z, b[i][t].w}};
        mma::multiply_add(sum[t], even, both, 0);
        mma::multiply_add(sum[t], odd, both, 1);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < tiles; ++t)
#pragma unroll
    for (int h = 0; h < halves; ++h)
      *reinterpret_cast<float2*>(&parts[warp][r + 8 * h][8 * t + 2 * q]) = {sum[t][2 * h], sum[t][2 * h + 1]};
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) / columns, column = static_cast<int>(threadIdx.x) % columns;
  if (row >= p.m || n0 + column >= p.n) return;
  float y = p.bias == nullptr ? 0.0f : value(p.bias[n0 + column]);
#pragma unroll
  for (int i = 0; i < warps; ++i) y += parts[i][row][column];
  p.y[row * p.stride_y + n0 + column] = element<Y>(y);
}

template <class Y>
void run(Cuda on, const Product& p, const ProductSizes& s) {
  const Few<Y> few{.x = p.a.data<bf16>(), .w = p.b.data<bf16>(), .y = p.c.data<Y>(),
                   .bias = p.bias ? p.bias.data<Y>() : nullptr, .stride_x = s.stride_a, .stride_w = s.stride_b,
                   .stride_y = s.stride_c, .n = s.n, .m = static_cast<int>(s.m), .k = static_cast<int>(s.k)};
  // Narrow blocks where there would be too few of them for all processors.
  const auto with_halves = [&](auto halves) {
    if (s.n >= 4096) launch(products<Y, 2, halves()>, blocks(s.n, 16), threads, 0, on, few);
    else launch(products<Y, 1, halves()>, blocks(s.n, 8), threads, 0, on, few);
  };
  if (s.m > 8) with_halves(std::integral_constant<int, 2>{});
  else with_halves(std::integral_constant<int, 1>{});
}

bool in_pieces(const Tensor& t, int64_t stride) {
  return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0 && (stride % piece == 0 || t.size(0) == 1);
}

}  // namespace

bool has_few_rows(const Product& p, const ProductSizes& s) {
  return p.a.rank() == 2 && !p.transpose_a && p.transpose_b && p.alpha == 1 && p.beta == 0 &&
         p.a.dtype() == DType::bf16 && p.b.dtype() == DType::bf16 && s.m <= 16 && s.k > 0 && s.k % piece == 0 &&
         s.k <= 1 << 30 && in_pieces(p.a, s.stride_a) && in_pieces(p.b, s.stride_b);
}

void multiply_few_rows(Cuda on, const Product& p, const ProductSizes& s) {
  with_gpu_float("multiply", p.c.dtype(), [&]<class Y>(Y) { run<Y>(on, p, s); });
}

}  // namespace adder
