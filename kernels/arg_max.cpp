#include "adder/kernels/arg_max.h"

#include "adder/core/error.h"
#include "adder/kernels/elements.h"

#include <limits>

namespace adder {

void arg_max(const Tensor& x, const Tensor& to) {
  check(x.rank() == 2 && to.shape() == Shape{x.size(0)} && to.dtype() == DType::i32 && to.contiguous() &&
            x.device() == to.device(),
        "arg_max: of {} on {} into {} {} on {}", to_string(x.shape()), name(x.device()), name(to.dtype()),
        to_string(to.shape()), name(to.device()));
  check(x.size(1) < std::numeric_limits<int32_t>::max(), "arg_max: {} columns are more than i32 can count", x.size(1));
  on(x.device(), [&](auto backend) { arg_max(backend, x, to); });
}

void arg_max(Cpu, const Tensor& x, const Tensor& to) {
  const int64_t columns = x.size(1), stride = x.stride(columns);
  with_float("arg_max", x.dtype(), [&]<class T>(T) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < x.size(0); ++i) {
      const T* row = x.data<T>() + i * stride;
      T top = -infinity;
      int64_t best = -1;
      for (int64_t j = 0; j < columns; ++j) {
        if (!(row[j] < infinity)) {
          best = -2 - j;
          break;
        }
        if (row[j] > top) top = row[j], best = j;
      }
      to.data<int32_t>()[i] = static_cast<int32_t>(best);
    }
  });
}

}  // namespace adder
