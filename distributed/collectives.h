// Collectives as operators, in pairs: each one's backward is the other's forward. A tensor is one of
//
//   replicated   the same on every member. Its gradient is too, and stands for the tensor once
//   parted       member r holds part r along an axis, as does the gradient
//   partial      the members' tensors are to be added. Their gradients are the same on every member
//
//   operator         from -> to                  forward          backward
//   Replicate        replicated -> each its own  x                all_reduce
//   SumPartial       partial -> replicated       all_reduce       dy
//   TakePart         replicated -> parted        own part         all_gather
//   JoinParts        parted -> replicated        all_gather       own part
//   GatherParts      parted -> each its own      all_gather       reduce_scatter
//   ScatterPartial   partial -> parted           reduce_scatter   all_gather
//   Shift            parted in time              to rank + by     to rank - by
//
// "Each its own" is a replicated tensor that the members go on to use differently (other heads, other columns of a
// weight), so that its gradients differ and are to be added. A column-parallel layer begins with Replicate, a
// row-parallel one ends with SumPartial; Shoeybi et al. 2019, "Megatron-LM", call them f and g. With activations parted
// in time they are GatherParts and ScatterPartial (Korthikanti et al. 2022).
//
// Parts are equal, along the first or the last axis. Backward keeps nothing but shapes. Every member runs the same
// operators in the same order, and so its backward does too. In a group of one all are the identity, without a copy;
// Shift still gives zeros.
#pragma once

#include "adder/core/grads.h"
#include "adder/distributed/communicator.h"

#include <tuple>

namespace adder {

enum class PartAxis : unsigned char { first, last };

struct Replicate {
  Tensor x;  // [...]
  Communicator group;
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

struct SumPartial {
  Tensor x;  // [...]
  Communicator group;
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

struct TakePart {
  Tensor x;  // [size * n, ...] or [..., size * n]
  Communicator group;
  PartAxis axis = PartAxis::last;
  auto inputs() { return std::tie(x); }
  Tensor forward();  // a view of x
  void backward(const Tensor& dy, Grads& to) const;
};

struct JoinParts {
  Tensor x;  // [n, ...] or [..., n]
  Communicator group;
  PartAxis axis = PartAxis::last;
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

struct GatherParts {
  Tensor x;  // [n, ...] or [..., n]
  Communicator group;
  PartAxis axis = PartAxis::last;
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

struct ScatterPartial {
  Tensor x;  // [size * n, ...] or [..., size * n]
  Communicator group;
  PartAxis axis = PartAxis::last;
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

/// What rank - by holds; zeros on the member that has no such neighbour.
struct Shift {
  Tensor x;  // [...], alike on every member
  Communicator group;
  int64_t by = 1;  // or -1
  auto inputs() { return std::tie(x); }
  Tensor forward();
  void backward(const Tensor& dy, Grads& to) const;
};

}  // namespace adder
