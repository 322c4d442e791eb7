#include "adder/distributed/communicator.h"

#include "adder/core/error.h"
#include "adder/distributed/environment.h"
#include "adder/distributed/mpi_call.h"
#include "adder/distributed/nccl.h"

#include <mpi.h>

#include <algorithm>
#include <cstring>

namespace adder {

struct Communicator::Group {
  MPI_Comm handle;
  mutable std::shared_ptr<const Nccl> nccl = {};  // from the first tensor on a GPU on
};

namespace {

void require(const char* what, const Tensor& x, int64_t size) {
  check(x.defined(), "{}: the tensor is undefined", what);
  check(built_with_nccl || x.device() == Device::cpu || size == 1,
        "{}: tensor {} is on {}, not on the CPU: this adder was built without NCCL", what, to_string(x.shape()),
        name(x.device()));
  check(x.contiguous(), "{}: tensor {} has rows of {} elements {} apart; a collective needs them side by side", what,
        to_string(x.shape()), x.row(), x.pitch());
}

void require_pair(const char* what, const Tensor& a, const Tensor& b, int64_t size) {
  require(what, a, size);
  require(what, b, size);
  check(a.device() == b.device(), "{}: tensor {} is on {} but tensor {} on {}", what, to_string(a.shape()),
        name(a.device()), to_string(b.shape()), name(b.device()));
}

void require_parts(const char* what, const Tensor& part, const Tensor& whole, int64_t size) {
  require_pair(what, part, whole, size);
  check(part.rank() >= 1 && whole.shape() == part.shape().with(0, part.size(0) * size) && part.dtype() == whole.dtype(),
        "{}: a part {} {} of each of {} ranks does not make a whole {} {}", what, name(part.dtype()),
        to_string(part.shape()), size, name(whole.dtype()), to_string(whole.shape()));
}

char* bytes_of(const Tensor& x) { return static_cast<char*>(x.address()); }
int as_int(int64_t n) { return static_cast<int>(n); }

/// Calls f(begin, count) for the chunks of n elements.
template <class F>
void chunks(int64_t n, int64_t chunk, F&& f) {
  for (int64_t begin = 0; begin < n; begin += chunk) f(begin, std::min(chunk, n - begin));
}

// Moves bytes between processes, at most `most` of them in a call: MPI counts in ints. The counterpart of Nccl.
struct Mpi {
  MPI_Comm group;
  int64_t rank, size, most;

  /// Messages of our own: Open MPI 4.1 hangs in its collectives when pieces lie 2^31 bytes apart.
  template <class Out, class In>
  void trade(int64_t bytes, Out&& out, In&& in) const {
    std::vector<MPI_Request> requests(static_cast<size_t>(2 * (size - 1)));
    auto request = requests.begin();
    for (int64_t k = 1; k < size; ++k) {
      const int64_t from = (rank + size - k) % size, to = (rank + k) % size;
      check_mpi(MPI_Irecv(in(from), as_int(bytes), MPI_BYTE, as_int(from), 0, group, &*request++), "MPI_Irecv");
      check_mpi(MPI_Isend(out(to), as_int(bytes), MPI_BYTE, as_int(to), 0, group, &*request++), "MPI_Isend");
    }
    check_mpi(MPI_Waitall(as_int(requests.size()), requests.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
  }

  void gather(const char* part, char* whole, int64_t bytes) const {
    constexpr int64_t few = 8192;  // bytes for which a call of MPI's beats messages of our own
    const auto place = [&](int64_t r) { return whole + r * bytes; };
    if (part != place(rank)) std::memcpy(place(rank), part, static_cast<size_t>(bytes));
    if (bytes <= std::min(few, most)) {
      check_mpi(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, whole, as_int(bytes), MPI_BYTE, group),
                "MPI_Allgather");
      return;
    }
    chunks(bytes, most, [&](int64_t begin, int64_t n) {
      trade(n, [&](int64_t) { return part + begin; }, [&](int64_t r) { return place(r) + begin; });
    });
  }

  void broadcast(char* x, int64_t bytes, int64_t root) const {
    chunks(bytes, most, [&](int64_t begin, int64_t n) {
      check_mpi(MPI_Bcast(x + begin, as_int(n), MPI_BYTE, as_int(root), group), "MPI_Bcast");
    });
  }

  void exchange(const char* sent, int64_t to, char* received, int64_t from, int64_t bytes) const {
    const auto member = [](int64_t r) { return r < 0 ? MPI_PROC_NULL : as_int(r); };
    chunks(bytes, most, [&](int64_t begin, int64_t n) {
      check_mpi(MPI_Sendrecv(sent + begin, as_int(n), MPI_BYTE, member(to), 0, received + begin, as_int(n), MPI_BYTE,
                             member(from), 0, group, MPI_STATUS_IGNORE), "MPI_Sendrecv");
    });
  }
};

}  // namespace

// Calls f with what moves the bytes of tensors like x: NCCL between GPUs, MPI otherwise.
template <class F>
void Communicator::through(const Tensor& x, F&& f) const {
  if constexpr (built_with_nccl) {
    if (x.device() == Device::cuda) {
      if (!group_->nccl) group_->nccl = std::make_shared<const Nccl>(*this);
      return f(*group_->nccl);
    }
  }
  f(Mpi{group_->handle, rank_, size_, chunk(x) * size_of(x.dtype())});
}

Communicator Communicator::world() {
  Communicator all;
  if (!running()) return all;
  int rank = 0, size = 1;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size");
  static const auto everyone = std::make_shared<const Group>(MPI_COMM_WORLD);  // with one communicator of NCCL
  if (size > 1) all.group_ = everyone;
  all.rank_ = rank;
  all.size_ = size;
  return all;
}

Communicator Communicator::split(int64_t colour, int64_t key) const {
  if (size_ == 1) return *this;
  Communicator part = *this;
  MPI_Comm handle;
  check_mpi(MPI_Comm_split(group_->handle, as_int(colour), as_int(key), &handle), "MPI_Comm_split");
  int rank = 0, size = 1;
  check_mpi(MPI_Comm_rank(handle, &rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(handle, &size), "MPI_Comm_size");
  part.group_ = size > 1 ? std::make_shared<Group>(handle) : nullptr;
  part.rank_ = rank;
  part.size_ = size;
  return part;
}

Communicator Communicator::with_chunk(int64_t elements) const {
  constexpr int64_t most = (int64_t{1} << 31) / 8 - 1;  // an MPI count is an int, of bytes here
  check(elements >= 1 && elements <= most, "a chunk of {} elements; it must have 1 to {}", elements, most);
  Communicator same = *this;
  same.chunk_ = elements;
  return same;
}

int64_t Communicator::chunk(const Tensor& x) const {
  if (chunk_ > 0) return chunk_;
  return x.device() == Device::cpu ? int64_t{1} << 19 : int64_t{1} << 22;  // GPUs need more on the way at once
}

// part = this member's piece of the sum; `whole` holds size pieces, each of part's elements. Part may be that piece.
void Communicator::scatter_sum(const Tensor& whole, const Tensor& part, Reduce reduce) const {
  const int64_t bytes = size_of(part.dtype()), count = part.count(), most = chunk(part);
  const Tensor own = part.reshape({count}), pieces = whole.reshape({size_, count});
  const Tensor room({size_ * std::min(most, count)}, part.dtype(), part.device());
  chunks(count, most, [&](int64_t begin, int64_t n) {
    const Tensor rows = room.slice_first(0, size_ * n).reshape({size_, n});
    through(part, [&](const auto& wire) {
      wire.trade(n * bytes, [&](int64_t r) { return bytes_of(pieces) + (r * count + begin) * bytes; },
                 [&](int64_t r) { return bytes_of(rows) + r * n * bytes; });
    });
    const Tensor mine = pieces.slice_first(rank_, rank_ + 1).reshape({count}).slice_first(begin, begin + n);
    on(part.device(), [&](auto backend) {
      reduce_rows(backend, rows, mine, rank_, reduce, own.slice_first(begin, begin + n));
    });
  });
}

// Reduces few elements, or those that do not divide: every member gathers and adds all of them.
void Communicator::reduce_tail(const Tensor& x, Reduce reduce) const {
  const int64_t bytes = x.count() * size_of(x.dtype());
  if (bytes == 0) return;
  const Tensor rows({size_, x.count()}, x.dtype(), x.device());
  through(x, [&](const auto& wire) { wire.gather(bytes_of(x), bytes_of(rows), bytes); });
  on(x.device(), [&](auto backend) { reduce_rows(backend, rows, x, rank_, reduce, x); });
}

void Communicator::all_reduce(const Tensor& x, Reduce reduce) const {
  require("all_reduce", x, size_);
  if (size_ == 1) return;
  constexpr int64_t few = 1024;    // elements for which one call beats two
  constexpr int64_t aligned = 64;  // elements: NCCL moves 16 bytes at a time only where all pieces are aligned to them
  const Tensor flat = x.reshape({x.count()});
  const int64_t piece = x.count() <= few ? 0 : x.count() / size_ / aligned * aligned, body = piece * size_;
  if (piece > 0) {
    const Tensor own = flat.slice_first(rank_ * piece, (rank_ + 1) * piece);
    scatter_sum(flat.slice_first(0, body), own, reduce);
    all_gather(own, flat.slice_first(0, body));
  }
  reduce_tail(flat.slice_first(body, x.count()), reduce);
}

void Communicator::all_gather(const Tensor& part, const Tensor& whole) const {
  require_parts("all_gather", part, whole, size_);
  if (part.count() == 0) return;
  if (size_ == 1) {
    if (bytes_of(part) != bytes_of(whole)) copy(part, whole);
    return;
  }
  through(part, [&](const auto& wire) {
    wire.gather(bytes_of(part), bytes_of(whole), part.count() * size_of(part.dtype()));
  });
}

void Communicator::reduce_scatter(const Tensor& whole, const Tensor& part) const {
  require_parts("reduce_scatter", part, whole, size_);
  check(!part.same_storage(whole), "reduce_scatter: the part may not lie in the whole");
  if (size_ > 1) scatter_sum(whole, part, Reduce::sum);
  else copy(whole, part);
}

void Communicator::broadcast(const Tensor& x, int64_t root) const {
  require("broadcast", x, size_);
  check(root >= 0 && root < size_, "broadcast: root {} of {} processes", root, size_);
  if (size_ == 1 || x.count() == 0) return;
  through(x, [&](const auto& wire) { wire.broadcast(bytes_of(x), x.count() * size_of(x.dtype()), root); });
}

void Communicator::shift(const Tensor& sent, const Tensor& received, int64_t by, Ends ends) const {
  require_pair("shift", sent, received, size_);
  check(by == 1 || by == -1, "shift: by {}; it must be 1 or -1", by);
  check(sent.shape() == received.shape() && sent.dtype() == received.dtype() && !sent.same_storage(received),
        "shift: {} {} is sent but {} {} received; they must be alike and apart", name(sent.dtype()),
        to_string(sent.shape()), name(received.dtype()), to_string(received.shape()));
  const auto neighbour = [&](int64_t rank) {
    if (ends == Ends::ring) return (rank + size_) % size_;
    return rank >= 0 && rank < size_ ? rank : int64_t{-1};
  };
  const int64_t to = neighbour(rank_ + by), from = neighbour(rank_ - by);
  if (sent.count() == 0) return;
  if (from < 0) fill(received, 0);
  else if (size_ == 1) copy(sent, received);
  if (size_ == 1) return;
  through(sent, [&](const auto& wire) {
    wire.exchange(bytes_of(sent), to, bytes_of(received), from, sent.count() * size_of(sent.dtype()));
  });
}

void Communicator::barrier() const {
  if (size_ > 1) check_mpi(MPI_Barrier(group_->handle), "MPI_Barrier");
}

std::vector<std::string> Communicator::exchange(const std::string& text) const {
  std::vector<std::string> all(static_cast<size_t>(size_));
  all[static_cast<size_t>(rank_)] = text;
  if (size_ == 1) return all;
  const Mpi mpi{group_->handle, rank_, size_, chunk_ > 0 ? chunk_ : 1 << 19};
  for (int64_t r = 0; r < size_; ++r) {
    std::string& word = all[static_cast<size_t>(r)];
    auto length = static_cast<int64_t>(word.size());
    mpi.broadcast(reinterpret_cast<char*>(&length), sizeof length, r);
    word.resize(static_cast<size_t>(length));
    mpi.broadcast(word.data(), length, r);
  }
  return all;
}

}  // namespace adder
