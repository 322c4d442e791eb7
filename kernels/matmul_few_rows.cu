// Floor: the weight, 2 n k bytes, at memory speed.
#include "adder/kernels/matmul_few_rows.h"

#include "adder/core/launch.cuh"
#include "adder/kernels/few_rows.cuh"

namespace adder {
namespace {

using few_rows::piece;
constexpr int warps = 8, threads = 32 * warps;
// So many rows always; more with no more than so much work, m n k. Beyond 16 rows blocks read as much of x as of W or
// more, out of the L2 cache: cuBLASLt reads less, but where W is small it has not enough blocks for all processors.
constexpr int64_t always = 16, most_rows = 64, most_work = 1 << 27;

template <class Y>
struct Few {
  few_rows::Weight w;
  const bf16* x;
  Y* y;
  const Y* bias;  // or null
  int64_t stride_x, stride_y;
  int m;
};

// A block has 8 halves rows of x.
template <class Y, int tiles, int halves>
__global__ void __launch_bounds__(threads, tiles * halves < 4 ? 4 : halves > 2 ? 2 : 3) products(Few<Y> p) {
  using Parts = few_rows::Parts<warps, tiles, halves>;
  __shared__ Parts parts;
  let_next_start();
  few_rows::fetch<tiles>(p.w);
  const int row = static_cast<int>(blockIdx.y) * Parts::rows;
  const bf16* const x = p.x + row * p.stride_x;
  wait_for_previous();
  few_rows::multiply(parts, p.w, [] {}, [&](int i, int k) {
    return few_rows::read(x + i * p.stride_x + k, row + i < p.m && k < p.w.k);
  });
  for (int at = static_cast<int>(threadIdx.x); at < Parts::rows * Parts::columns; at += threads) {
    const int i = at / Parts::columns, j = at % Parts::columns;
    const int64_t column = int64_t{blockIdx.x} * Parts::columns + j;
    if (row + i >= p.m || column >= p.w.n) continue;
    const float bias = p.bias == nullptr ? 0.0f : value(p.bias[column]);
    p.y[(row + i) * p.stride_y + column] = element<Y>(parts.sum(i, j) + bias);
  }
}

template <class Y>
void run(Cuda on, const Product& p, const ProductSizes& s) {
  const Few<Y> few{.w = {p.b.data<bf16>(), s.stride_b, s.n, static_cast<int>(s.k)}, .x = p.a.data<bf16>(),
                   .y = p.c.data<Y>(), .bias = p.bias ? p.bias.data<Y>() : nullptr, .stride_x = s.stride_a,
                   .stride_y = s.stride_c, .m = static_cast<int>(s.m)};
  // Narrow blocks where there would be too few of them for all processors.
  const auto with = [&](auto tiles, auto halves) {
    launch_early(products<Y, tiles(), halves()>, dim3(blocks(s.n, 8 * tiles()), blocks(s.m, 8 * halves())), threads, 0,
                 on, few);
  };
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, 2> two;
  constexpr std::integral_constant<int, 4> four;
  if (s.m > 16) return s.n >= 2048 ? with(four, four) : with(two, four);
  if (s.m > 8) return s.n >= 4096 ? with(two, two) : with(one, two);
  s.n >= 4096 ? with(two, one) : with(one, one);
}

bool in_pieces(const Tensor& t, int64_t stride) {
  return reinterpret_cast<uintptr_t>(t.address()) % 16 == 0 && (stride % piece == 0 || t.size(0) == 1);
}

}  // namespace

bool has_few_rows(const Product& p, const ProductSizes& s) {
  return p.a.rank() == 2 && !p.transpose_a && p.transpose_b && p.alpha == 1 && p.beta == 0 &&
         p.a.dtype() == DType::bf16 && p.b.dtype() == DType::bf16 &&
         (s.m <= always || (s.m <= most_rows && s.m * s.n * s.k <= most_work)) && s.k > 0 && s.k % piece == 0 &&
         s.k <= 1 << 30 && in_pieces(p.a, s.stride_a) && in_pieces(p.b, s.stride_b);
}

void multiply_few_rows(Cuda on, const Product& p, const ProductSizes& s) {
  with_gpu_float("multiply", p.c.dtype(), [&]<class Y>(Y) { run<Y>(on, p, s); });
}

}  // namespace adder
