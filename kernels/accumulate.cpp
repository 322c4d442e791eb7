#include "adder/kernels/accumulate.h"

#include "adder/core/error.h"

namespace adder {

void accumulate(const Tensor& from, const Tensor& to) {
  const bool rounded = to.device() == Device::cuda && from.dtype() == DType::bf16 && to.dtype() == DType::f32;
  check(from.shape() == to.shape() && from.device() == to.device(), "accumulate: from {} {} to {} {}",
        name(from.device()), to_string(from.shape()), name(to.device()), to_string(to.shape()));
  check(from.dtype() == to.dtype() || rounded, "accumulate: from {} to {}", name(from.dtype()), name(to.dtype()));
  if (to.count() == 0) return;
  on(to.device(), [&](auto backend) { accumulate(backend, from, to); });
}

void accumulate(Cpu, const Tensor& from, const Tensor& to) {
  const bool flat = from.contiguous() && to.contiguous();
  const int64_t row =
      flat ? 1 << 14 : std::min(from.contiguous() ? to.row() : from.row(), to.contiguous() ? from.row() : to.row());
  with_float("accumulate", to.dtype(), [&]<class T>(T) {
    const T* source = from.data<T>();
    T* target = to.data<T>();
    const auto at = [](const Tensor& t, int64_t i) {
      return t.contiguous() ? i : i / t.row() * t.pitch() + i % t.row();
    };
#pragma omp parallel for if (to.count() > 1 << 15)
    for (int64_t i = 0; i < to.count(); i += row) {
      const T* s = source + at(from, i);
      T* t = target + at(to, i);
      const int64_t n = std::min(row, to.count() - i);
      for (int64_t j = 0; j < n; ++j) t[j] += s[j];
    }
  });
}

}  // namespace adder
