#include "adder/core/later.h"

#include "adder/core/copy.h"
#include "adder/core/error.h"

namespace adder {

Later::Later(const Tensor& of_one) {
  check(of_one.defined() && of_one.count() == 1, "Later: the tensor has {} elements, not one",
        of_one.defined() ? of_one.count() : 0);
  if constexpr (built_with_cuda) {
    if (of_one.device() == Device::cuda) {
      arriving_ = fetch(Cuda{compute_stream()}, of_one);
      return;
    }
  }
  value_ = item(of_one);
}

}  // namespace adder
