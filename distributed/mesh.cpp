#include "adder/distributed/mesh.h"

#include "adder/core/error.h"

namespace adder {
namespace {

void require_contiguous(const char* what, const Tensor& x) {
  check(x.defined(), "{}: the tensor is undefined", what);
  check(x.contiguous(), "{}: tensor {} has rows of {} elements {} apart; a collective needs them side by side", what,
        to_string(x.shape()), x.row(), x.pitch());
}

}  // namespace

void Communicator::all_reduce(const Tensor& x, Reduce) const { require_contiguous("all_reduce", x); }

void Communicator::broadcast(const Tensor& x, int64_t root) const {
  require_contiguous("broadcast", x);
  check(root >= 0 && root < size(), "broadcast: root {} of {} processes", root, size());
}

}  // namespace adder
