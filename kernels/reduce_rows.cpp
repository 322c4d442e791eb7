#include "adder/kernels/reduce_rows.h"

#include "adder/core/bf16.h"

#include <algorithm>

namespace adder {
namespace {

double wide(float x) { return x; }
double wide(double x) { return x; }
double wide(bf16 x) { return to_float(x); }
int64_t wide(int32_t x) { return x; }
void round_to(float& to, double x) { to = static_cast<float>(x); }
void round_to(double& to, double x) { to = x; }
void round_to(bf16& to, double x) { to = to_bf16(static_cast<float>(x)); }
void round_to(int32_t& to, int64_t x) { to = static_cast<int32_t>(x); }

template <class T>
void reduce_rows(const T* rows, const T* mine, int64_t own, int64_t size, int64_t n, Reduce reduce, T* to) {
  constexpr int64_t tile = 1024;
  using Wide = decltype(wide(T{}));
  const auto row = [=](int64_t r) { return r == own ? mine : rows + r * n; };
#pragma omp parallel for if (size * n > 1 << 15)
  for (int64_t begin = 0; begin < n; begin += tile) {
    Wide sum[tile];
    const int64_t width = std::min(tile, n - begin);
    for (int64_t i = 0; i < width; ++i) sum[i] = wide(row(0)[begin + i]);
    for (int64_t r = 1; r < size; ++r) {
      const T* const x = row(r) + begin;
      if (reduce == Reduce::sum)
        for (int64_t i = 0; i < width; ++i) sum[i] += wide(x[i]);
      else
        for (int64_t i = 0; i < width; ++i) sum[i] = sum[i] >= wide(x[i]) || sum[i] != sum[i] ? sum[i] : wide(x[i]);
    }
    for (int64_t i = 0; i < width; ++i) round_to(to[begin + i], sum[i]);
  }
}

}  // namespace

void reduce_rows(Cpu, const Tensor& rows, const Tensor& mine, int64_t own, Reduce reduce, const Tensor& to) {
  const auto run = [&]<class T>(T) {
    reduce_rows(rows.data<T>(), mine.data<T>(), own, rows.size(0), to.count(), reduce, to.data<T>());
  };
  switch (to.dtype()) {
    case DType::f32: return run(float{});
    case DType::f64: return run(double{});
    case DType::bf16: return run(bf16{});
    case DType::i32: return run(int32_t{});
  }
}

}  // namespace adder
