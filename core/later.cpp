#include "adder/core/later.h"

#include "adder/core/copy.h"
#include "adder/core/error.h"

namespace adder {

Later::Later(const Tensor& of_one) {
  check(of_one.defined() && of_one.count() == 1, "Later: the tensor has {} elements, not one",
        of_one.defined() ? of_one.count() : 0);
  if (of_one.device() == Device::cpu) value_ = item(of_one);
  else arriving_ = [arriving = later(of_one)] { return item(arriving()); };
}

std::function<Tensor()> later(const Tensor& t) {
  check(t.defined() && t.contiguous(), "later: the tensor is undefined, or its rows lie apart");
  if constexpr (built_with_cuda) {
    if (t.device() == Device::cuda) return fetch(Cuda{compute_stream()}, t);
  }
  return [now = clone(t)] { return now; };
}

}  // namespace adder
