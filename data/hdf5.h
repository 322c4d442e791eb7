// What the sources that read and write HDF5 share. Headers do without <hdf5.h>: its hid_t is int64_t here, herr_t int.
#pragma once

#include <cstdint>
#include <utility>

namespace adder::hdf5 {

/// An identifier, closed by the function that belongs to it; negative where opening failed.
class Handle {
 public:
  Handle(int64_t id, int (*close)(int64_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  bool opened() const { return id_ >= 0; }
  operator int64_t() const { return id_; }
  int end() { return close_(std::exchange(id_, -1)); }  // negative if it could not be closed

 private:
  int64_t id_;
  int (*close_)(int64_t);
};

/// HDF5 prints nothing any more: every call is checked and its failure told in one sentence. It stays so, because after
/// meeting a damaged file HDF5 would complain once more at the end of the process.
void quiet();

/// How to open a file without HDF5's lock, which many network disks refuse.
Handle without_locks();

/// The unsigned integers of 1, 2, 4 or 8 bytes, the lowest byte first.
int64_t unsigned_type(int64_t bytes);

}  // namespace adder::hdf5
