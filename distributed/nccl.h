// Nccl: what a group of processes with a GPU each needs of NCCL: bytes moved from GPU to GPU. Communicator is what
// programs use; it makes one of these when the group's first tensor on a GPU is to be moved.
//
// Everything is queued on the compute stream, so it is ordered with the kernels before and after it and the host waits
// for nothing. Messages may be of any size: NCCL counts in 64 bits. Every call is checked; a fault of the network
// shows at the next one.
#pragma once

#include <cstdint>
#include <functional>

struct ncclComm;

namespace adder {

#ifdef ADDER_WITH_NCCL
inline constexpr bool built_with_nccl = true;
#else
inline constexpr bool built_with_nccl = false;  // nccl.cpp is not compiled, and nothing may call it
#endif

class Communicator;

/// Lasts as long as the program, like MPI's communicators: to let go of one the members would have to agree.
class Nccl {
 public:
  /// Every member makes the call, with its GPU chosen (core/device.h): each has another one.
  explicit Nccl(const Communicator& group);
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;

  /// Every member's `bytes` side by side, by rank. `part` may be this member's place in `whole`.
  void gather(const char* part, char* whole, int64_t bytes) const;
  /// Sends `bytes` from out(r) to every other member r and receives as many from it at in(r).
  void trade(int64_t bytes, const std::function<const char*(int64_t)>& out,
             const std::function<char*(int64_t)>& in) const;
  void broadcast(char* x, int64_t bytes, int64_t root) const;
  /// Sends to one member and receives from another; -1: to or from nobody.
  void exchange(const char* sent, int64_t to, char* received, int64_t from, int64_t bytes) const;

 private:
  void check_state() const;

  ncclComm* comm_ = nullptr;
  int64_t rank_, size_;
};

}  // namespace adder
