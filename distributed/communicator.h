// Communicator: a group of processes and what they do together.
//
// Every member makes the same calls in the same order, with tensors of the same size and dtype: contiguous; f32, f64,
// bf16 or i32; all on the CPU, or each on its member's GPU (distributed/gpus.h). MPI moves bytes between the former,
// NCCL between the latter: on the compute stream, so that the host waits for nothing. A group of one process needs
// neither and does what the formulas say, which is next to nothing.
//
// Results are the same bits on every member, on every device and from run to run: an element's sum is taken over the
// members in the order of their ranks, in f64, and rounded once (bf16: to f32 first; i32: in 64 bits, modulo 2^32).
// MPI and NCCL only move bytes, so neither their choice of algorithm nor arrival in another order can change a number.
// (NCCL's own sums have an order that depends on size and machine, its authors say, and with NVLink multicast none that
// can be relied on; its maximum loses NaN.)
// Tensors of any size pass in chunks: no count reaches 2^31. Bytes that each of p members sends, for a tensor of n:
// all_reduce 2 n (p - 1) / p, all_gather and reduce_scatter n (p - 1) / p with n the whole, broadcast n, shift n.
#pragma once

#include "adder/kernels/reduce_rows.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace adder {

/// What lies beyond the first and the last rank of a shift: nothing, or each other.
enum class Ends : unsigned char { open, ring };

class Communicator {
 public:
  /// This process alone.
  Communicator() = default;
  /// All processes of the program. While no Environment (distributed/environment.h) lives: this process alone.
  static Communicator world();

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }

  /// The members of one colour, in the order of (key, rank here). Communicators last as long as the program: letting go
  /// of one would be a collective call, and destructors run in no agreed order.
  Communicator split(int64_t colour, int64_t key) const;

  /// x = the sum (or maximum) of x over the members.
  void all_reduce(const Tensor& x, Reduce reduce = Reduce::sum) const;
  /// whole = the members' parts along the first axis, by rank: [size * n, ...] from [n, ...]. `part` may be this
  /// member's slice of `whole`.
  void all_gather(const Tensor& part, const Tensor& whole) const;
  /// part = this member's slice, along the first axis, of the sum of `whole`: [n, ...] from [size * n, ...].
  void reduce_scatter(const Tensor& whole, const Tensor& part) const;
  /// x = the root's x.
  void broadcast(const Tensor& x, int64_t root = 0) const;
  /// received = what rank() - by sent, `sent` going to rank() + by, where by is 1 or -1. With open ends the member to
  /// which nobody sends gets zeros, so that the adjoint of a shift is the shift the other way.
  void shift(const Tensor& sent, const Tensor& received, int64_t by = 1, Ends ends = Ends::open) const;
  /// Returns once every member has called it.
  void barrier() const;
  /// Every member's text, by rank.
  std::vector<std::string> exchange(const std::string& text) const;

  /// The same group, moving at most so many elements from each member in one call of MPI, or adding so many at a time
  /// on a GPU. The numbers that arrive do not depend on it.
  Communicator with_chunk(int64_t elements) const;

 private:
  struct Group;  // the handles of MPI and NCCL

  template <class F>
  void through(const Tensor& x, F&& f) const;
  int64_t chunk(const Tensor& x) const;
  void scatter_sum(const Tensor& whole, const Tensor& part, Reduce reduce) const;
  void reduce_tail(const Tensor& x, Reduce reduce) const;

  std::shared_ptr<const Group> group_;  // none: this process alone
  int64_t rank_ = 0, size_ = 1;
  int64_t chunk_ = 0;  // a reduction needs room for so many elements from each member; 0: as suits the device
};

}  // namespace adder
