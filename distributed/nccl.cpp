#include "adder/distributed/nccl.h"

#include "adder/core/error.h"
#include "adder/distributed/communicator.h"

#include <nccl.h>

#include <cstring>
#include <string>

namespace adder {
namespace {

void check_nccl(ncclResult_t status, const char* call, ncclComm_t comm = nullptr,
                std::source_location at = std::source_location::current()) {
  if (status == ncclSuccess) [[likely]] return;
  const std::string more = ncclGetLastError(comm);
  throw Error(fmt::format("{}: {}{}", call, ncclGetErrorString(status), more.empty() ? "" : "; " + more), at);
}

size_t as_size(int64_t n) { return static_cast<size_t>(n); }
int as_int(int64_t n) { return static_cast<int>(n); }

}  // namespace

Nccl::Nccl(const Communicator& group) : rank_(group.rank()), size_(group.size()) {
  compute_stream();  // makes this process's GPU the current one
  ncclUniqueId id;
  const Tensor shared({static_cast<int64_t>(sizeof id / sizeof(int32_t))}, DType::i32);
  if (rank_ == 0) {
    check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
    std::memcpy(shared.address(), &id, sizeof id);
  }
  group.broadcast(shared);
  std::memcpy(&id, shared.address(), sizeof id);
  check_nccl(ncclCommInitRank(&comm_, as_int(size_), id, as_int(rank_)), "ncclCommInitRank");
}

// What went wrong in the background since the last call.
void Nccl::check_state() const {
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError", comm_);
  check_nccl(state, "an earlier operation of NCCL", comm_);
}

void Nccl::gather(const char* part, char* whole, int64_t bytes) const {
  check_state();
  check_nccl(ncclAllGather(part, whole, as_size(bytes), ncclUint8, comm_, compute_stream()), "ncclAllGather", comm_);
}

void Nccl::trade(int64_t bytes, const std::function<const char*(int64_t)>& out,
                 const std::function<char*(int64_t)>& in) const {
  check_state();
  check_nccl(ncclGroupStart(), "ncclGroupStart", comm_);
  for (int64_t k = 1; k < size_; ++k) {
    const int64_t from = (rank_ + size_ - k) % size_, to = (rank_ + k) % size_;
    check_nccl(ncclRecv(in(from), as_size(bytes), ncclUint8, as_int(from), comm_, compute_stream()), "ncclRecv", comm_);
    check_nccl(ncclSend(out(to), as_size(bytes), ncclUint8, as_int(to), comm_, compute_stream()), "ncclSend", comm_);
  }
  check_nccl(ncclGroupEnd(), "ncclGroupEnd", comm_);
}

void Nccl::broadcast(char* x, int64_t bytes, int64_t root) const {
  check_state();
  check_nccl(ncclBroadcast(x, x, as_size(bytes), ncclUint8, as_int(root), comm_, compute_stream()), "ncclBroadcast",
             comm_);
}

void Nccl::exchange(const char* sent, int64_t to, char* received, int64_t from, int64_t bytes) const {
  check_state();
  check_nccl(ncclGroupStart(), "ncclGroupStart", comm_);
  if (from >= 0)
    check_nccl(ncclRecv(received, as_size(bytes), ncclUint8, as_int(from), comm_, compute_stream()), "ncclRecv", comm_);
  if (to >= 0)
    check_nccl(ncclSend(sent, as_size(bytes), ncclUint8, as_int(to), comm_, compute_stream()), "ncclSend", comm_);
  check_nccl(ncclGroupEnd(), "ncclGroupEnd", comm_);
}

}  // namespace adder
