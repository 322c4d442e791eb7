#include "adder/distributed/communicator.h"

#include "adder/core/bf16.h"
#include "adder/core/error.h"
#include "adder/distributed/environment.h"
#include "adder/distributed/mpi_call.h"

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace adder {

struct Communicator::Group {
  MPI_Comm handle;
};

namespace {

void require(const char* what, const Tensor& x, int64_t size) {
  check(x.defined(), "{}: the tensor is undefined", what);
  check(x.device() == Device::cpu || size == 1, "{}: tensor {} is on {}, not on the CPU", what, to_string(x.shape()),
        name(x.device()));
  check(x.contiguous(), "{}: tensor {} has rows of {} elements {} apart; a collective needs them side by side", what,
        to_string(x.shape()), x.row(), x.pitch());
}

void require_parts(const char* what, const Tensor& part, const Tensor& whole, int64_t size) {
  require(what, part, 2);  // bytes are moved in a group of one too
  require(what, whole, 2);
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

/// Sends `bytes` from out(r) to every other member r and receives as many from it at in(r). Messages of our own: Open
/// MPI 4.1 hangs in its collectives when pieces lie 2^31 bytes apart.
template <class Out, class In>
void trade(MPI_Comm group, int64_t rank, int64_t size, int64_t bytes, Out&& out, In&& in) {
  std::vector<MPI_Request> requests(static_cast<size_t>(2 * (size - 1)));
  auto request = requests.begin();
  for (int64_t k = 1; k < size; ++k) {
    const int64_t from = (rank + size - k) % size, to = (rank + k) % size;
    check_mpi(MPI_Irecv(in(from), as_int(bytes), MPI_BYTE, as_int(from), 0, group, &*request++), "MPI_Irecv");
    check_mpi(MPI_Isend(out(to), as_int(bytes), MPI_BYTE, as_int(to), 0, group, &*request++), "MPI_Isend");
  }
  check_mpi(MPI_Waitall(as_int(requests.size()), requests.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
}

double wide(float x) { return x; }
double wide(double x) { return x; }
double wide(bf16 x) { return to_float(x); }
int64_t wide(int32_t x) { return x; }
void round_to(float& to, double x) { to = static_cast<float>(x); }
void round_to(double& to, double x) { to = x; }
void round_to(bf16& to, double x) { to = to_bf16(static_cast<float>(x)); }
void round_to(int32_t& to, int64_t x) { to = static_cast<int32_t>(x); }

// to[i] = the sum (or maximum) of rows[r][i] over r, from the first row on. One of the rows may be `to`.
template <class T>
void reduce_rows(const std::vector<const T*>& rows, int64_t n, Reduce reduce, T* to) {
  constexpr int64_t tile = 1024;
  using Wide = decltype(wide(T{}));
#pragma omp parallel for if (static_cast<int64_t>(rows.size()) * n > 1 << 15)
  for (int64_t begin = 0; begin < n; begin += tile) {
    Wide sum[tile];
    const int64_t width = std::min(tile, n - begin);
    for (int64_t i = 0; i < width; ++i) sum[i] = wide(rows[0][begin + i]);
    for (size_t r = 1; r < rows.size(); ++r) {
      const T* row = rows[r] + begin;
      if (reduce == Reduce::sum)
        for (int64_t i = 0; i < width; ++i) sum[i] += wide(row[i]);
      else
        for (int64_t i = 0; i < width; ++i) sum[i] = sum[i] >= wide(row[i]) || sum[i] != sum[i] ? sum[i] : wide(row[i]);
    }
    for (int64_t i = 0; i < width; ++i) round_to(to[begin + i], sum[i]);
  }
}

void reduce_rows(const std::vector<const char*>& rows, DType type, int64_t n, Reduce reduce, char* to) {
  const auto run = [&]<class T>(T) {
    std::vector<const T*> typed;
    for (const char* row : rows) typed.push_back(reinterpret_cast<const T*>(row));
    reduce_rows(typed, n, reduce, reinterpret_cast<T*>(to));
  };
  switch (type) {
    case DType::f32: return run(float{});
    case DType::f64: return run(double{});
    case DType::bf16: return run(bf16{});
    case DType::i32: return run(int32_t{});
  }
}

}  // namespace

Communicator Communicator::world() {
  Communicator all;
  if (!running()) return all;
  int rank = 0, size = 1;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size");
  if (size > 1) all.group_ = std::make_shared<Group>(MPI_COMM_WORLD);
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

// Every member's `count` elements, the own ones from `part`, side by side in `whole`.
void Communicator::gather(const char* part, char* whole, int64_t count, int64_t bytes) const {
  const auto piece = [&](int64_t r) { return whole + r * count * bytes; };
  if (part != piece(rank_)) std::memcpy(piece(rank_), part, static_cast<size_t>(count * bytes));
  chunks(count, chunk_, [&](int64_t begin, int64_t n) {
    trade(group_->handle, rank_, size_, n * bytes, [&](int64_t) { return part + begin * bytes; },
          [&](int64_t r) { return piece(r) + begin * bytes; });
  });
}

// part = this member's piece of the sum; `whole` holds size pieces, each of part's elements. Part may be that piece.
void Communicator::scatter_sum(const Tensor& whole, const Tensor& part, Reduce reduce) const {
  const int64_t bytes = size_of(part.dtype()), count = part.count();
  const Tensor received({size_, std::min(chunk_, count)}, part.dtype());
  chunks(count, chunk_, [&](int64_t begin, int64_t n) {
    const auto arriving = [&](int64_t r) { return bytes_of(received) + r * n * bytes; };
    const auto piece = [&](int64_t r) { return bytes_of(whole) + (r * count + begin) * bytes; };
    trade(group_->handle, rank_, size_, n * bytes, piece, arriving);
    std::vector<const char*> rows;
    for (int64_t r = 0; r < size_; ++r) rows.push_back(r == rank_ ? piece(r) : arriving(r));
    reduce_rows(rows, part.dtype(), n, reduce, bytes_of(part) + begin * bytes);
  });
}

// Reduces few elements, or those that do not divide: every member gathers and adds all of them.
void Communicator::reduce_tail(const Tensor& x, Reduce reduce) const {
  const int64_t bytes = x.count() * size_of(x.dtype());
  if (bytes == 0) return;
  const Tensor all({size_, x.count()}, x.dtype());
  check_mpi(MPI_Allgather(bytes_of(x), as_int(bytes), MPI_BYTE, bytes_of(all), as_int(bytes), MPI_BYTE, group_->handle),
            "MPI_Allgather");
  std::vector<const char*> rows;
  for (int64_t r = 0; r < size_; ++r) rows.push_back(bytes_of(all) + r * bytes);
  reduce_rows(rows, x.dtype(), x.count(), reduce, bytes_of(x));
}

void Communicator::all_reduce(const Tensor& x, Reduce reduce) const {
  require("all_reduce", x, size_);
  if (size_ == 1) return;
  constexpr int64_t few = 1024;  // elements for which one call of MPI beats two
  const Tensor flat = x.reshape({x.count()});
  const int64_t piece = x.count() <= few ? 0 : x.count() / size_, body = piece * size_;
  if (piece > 0) {
    const Tensor own = flat.slice_first(rank_ * piece, (rank_ + 1) * piece);
    scatter_sum(flat.slice_first(0, body), own, reduce);
    gather(bytes_of(own), bytes_of(flat), piece, size_of(x.dtype()));
  }
  reduce_tail(flat.slice_first(body, x.count()), reduce);
}

void Communicator::all_gather(const Tensor& part, const Tensor& whole) const {
  require_parts("all_gather", part, whole, size_);
  const int64_t bytes = size_of(part.dtype());
  if (size_ > 1) gather(bytes_of(part), bytes_of(whole), part.count(), bytes);
  else if (bytes_of(part) != bytes_of(whole)) std::memcpy(bytes_of(whole), bytes_of(part), part.count() * bytes);
}

void Communicator::reduce_scatter(const Tensor& whole, const Tensor& part) const {
  require_parts("reduce_scatter", part, whole, size_);
  check(!part.same_storage(whole), "reduce_scatter: the part may not lie in the whole");
  if (size_ > 1) scatter_sum(whole, part, Reduce::sum);
  else std::memcpy(bytes_of(part), bytes_of(whole), part.count() * size_of(part.dtype()));
}

void Communicator::broadcast(const Tensor& x, int64_t root) const {
  require("broadcast", x, size_);
  check(root >= 0 && root < size_, "broadcast: root {} of {} processes", root, size_);
  if (size_ == 1) return;
  const int64_t bytes = size_of(x.dtype());
  chunks(x.count(), chunk_, [&](int64_t begin, int64_t n) {
    check_mpi(MPI_Bcast(bytes_of(x) + begin * bytes, as_int(n * bytes), MPI_BYTE, as_int(root), group_->handle),
              "MPI_Bcast");
  });
}

void Communicator::shift(const Tensor& sent, const Tensor& received, int64_t by, Ends ends) const {
  require("shift", sent, 2);
  require("shift", received, 2);
  check(by == 1 || by == -1, "shift: by {}; it must be 1 or -1", by);
  check(sent.shape() == received.shape() && sent.dtype() == received.dtype() && !sent.same_storage(received),
        "shift: {} {} is sent but {} {} received; they must be alike and apart", name(sent.dtype()),
        to_string(sent.shape()), name(received.dtype()), to_string(received.shape()));
  const auto neighbour = [&](int64_t rank) {
    if (ends == Ends::ring) return as_int((rank + size_) % size_);
    return rank >= 0 && rank < size_ ? as_int(rank) : MPI_PROC_NULL;
  };
  const int to = neighbour(rank_ + by), from = neighbour(rank_ - by);
  const int64_t bytes = size_of(sent.dtype());
  if (from == MPI_PROC_NULL) std::memset(bytes_of(received), 0, received.count() * bytes);
  if (size_ == 1) {
    if (ends == Ends::ring) std::memcpy(bytes_of(received), bytes_of(sent), sent.count() * bytes);
    return;
  }
  chunks(sent.count(), chunk_, [&](int64_t begin, int64_t n) {
    check_mpi(MPI_Sendrecv(bytes_of(sent) + begin * bytes, as_int(n * bytes), MPI_BYTE, to, 0,
                           bytes_of(received) + begin * bytes, as_int(n * bytes), MPI_BYTE, from, 0, group_->handle,
                           MPI_STATUS_IGNORE), "MPI_Sendrecv");
  });
}

void Communicator::barrier() const {
  if (size_ > 1) check_mpi(MPI_Barrier(group_->handle), "MPI_Barrier");
}

std::vector<std::string> Communicator::exchange(const std::string& text) const {
  std::vector<std::string> all(static_cast<size_t>(size_));
  all[static_cast<size_t>(rank_)] = text;
  for (int64_t r = 0; size_ > 1 && r < size_; ++r) {
    std::string& word = all[static_cast<size_t>(r)];
    auto length = static_cast<int64_t>(word.size());
    check_mpi(MPI_Bcast(&length, sizeof length, MPI_BYTE, as_int(r), group_->handle), "MPI_Bcast");
    word.resize(static_cast<size_t>(length));
    chunks(length, chunk_, [&](int64_t begin, int64_t n) {
      check_mpi(MPI_Bcast(word.data() + begin, as_int(n), MPI_BYTE, as_int(r), group_->handle), "MPI_Bcast");
    });
  }
  return all;
}

}  // namespace adder
