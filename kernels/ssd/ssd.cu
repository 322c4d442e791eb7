// Which kernels do SSD on the GPU.
#include "adder/kernels/ssd/recurrent.h"

namespace adder {

// Backward finds states again: what is kept is the state before the first token, one a batch row.
int64_t ssd_states(Cuda, const Ssd& op) { return op.has_initial_state ? op.x.size(0) : 0; }

void ssd_forward(Cuda on, const Ssd& op, const SsdResult& to) { ssd::recurrent_forward(on, op, to); }

void ssd_backward(Cuda on, const Ssd& op, const Tensor& dy, const Tensor& dfinal, const SsdGradients& to) {
  ssd::recurrent_backward(on, op, dy, dfinal, to);
}

}  // namespace adder
