// Floor: the weight, 2 n k bytes, at memory speed.
#include "adder/kernels/matmul_few_rows.h"

#include "adder/core/launch.cuh"
#include "adder/kernels/few_rows.cuh"

namespace adder {
namespace {

using few_rows::piece;
constexpr int warps = 8, threads = 32 * warps;

template <class Y>
struct Few {
  few_rows::Weight w;
  const bf16* x;
  Y* y;
  const Y* bias;  // or null
  int64_t stride_x, stride_y;
  int m;
};

template <class Y, int tiles, int halves>
__global__ void __launch_bounds__(threads, tiles * halves < 4 ? 4 : 3) products(Few<Y> p) {
  let_next_start();
  few_rows::fetch<tiles>(p.w);
  const few_rows::Place<tiles> at(p.w.n, p.m);
  wait_for_previous();
  const float sum = few_rows::product<warps, tiles, halves>(p.w, [] {}, [&](int row, int k) {
    return few_rows::read(p.x + row * p.stride_x + k, row < p.m && k < p.w.k);
  });
  if (!at.inside) return;
  const float bias = p.bias == nullptr ? 0.0f : value(p.bias[at.column]);
  p.y[at.row * p.stride_y + at.column] = element<Y>(sum + bias);
}

template <class Y>
void run(Cuda on, const Product& p, const ProductSizes& s) {
  const Few<Y> few{.w = {p.b.data<bf16>(), s.stride_b, s.n, static_cast<int>(s.k)}, .x = p.a.data<bf16>(),
                   .y = p.c.data<Y>(), .bias = p.bias ? p.bias.data<Y>() : nullptr, .stride_x = s.stride_a,
                   .stride_y = s.stride_c, .m = static_cast<int>(s.m)};
  // Narrow blocks where there would be too few of them for all processors.
  const auto with_halves = [&](auto halves) {
    if (s.n >= 4096) launch_early(products<Y, 2, halves()>, blocks(s.n, 16), threads, 0, on, few);
    else launch_early(products<Y, 1, halves()>, blocks(s.n, 8), threads, 0, on, few);
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
