// Memory: a caching pool. Blocks go back to the pool when the last tensor lets go and are handed out again by size, so
// a training step of fixed shapes asks the system for memory in its first step only.
#pragma once

#include "adder/core/device.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace adder {

/// A block of device memory, returned to its pool on destruction. Not initialised; aligned to 64 bytes, 256 on the GPU.
class Storage {
 public:
  Storage(Device device, int64_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  /// The block; one that was given back is made again first.
  void* data() {
    void* const block = data_.load(std::memory_order_acquire);
    return block != nullptr ? block : made_again();
  }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

  /// Gives the block back to the pool. The next data() calls `make`, once, and takes the block of the storage that it
  /// returns: of the same size, on the same device, and held by nobody else. If it throws, so does data(), and the next
  /// one tries again. `make` must not lead back to this storage.
  void give_back(std::function<std::shared_ptr<Storage>()> make);

 private:
  struct Again;
  void* made_again();

  std::atomic<void*> data_;       // null: given back
  std::unique_ptr<Again> again_;  // how it is made again, from the first time that it was given back
  int64_t bytes_;                 // as asked for
  Device device_;
};

/// Blocks set apart for a CUDA graph, which writes to the same addresses whenever it is replayed. While it is open
/// every new block of the device comes from it, and one that is let go, then or later, waits in it for the next taker:
/// none is handed to anybody else. When it ends its blocks go to the device's pool, those that somebody still holds as
/// soon as they are let go.
class PrivatePool {
 public:
  explicit PrivatePool(Device device);
  ~PrivatePool();
  PrivatePool(const PrivatePool&) = delete;
  PrivatePool& operator=(const PrivatePool&) = delete;

  void open() const;   // throws if another one of the device is open
  void close() const;

 private:
  Device device_;
  int64_t number_;
};

/// What the pool takes for so many bytes: blocks of near sizes are shared, and at most 12.5 % is wasted, of large ones
/// next to nothing.
int64_t pooled_bytes(int64_t bytes);

/// Bytes of a device's pool: now handed out or set apart, the most that ever was, and taken from the system.
struct MemoryUse {
  int64_t in_use = 0, peak = 0, reserved = 0;
};
MemoryUse memory_use(Device device);
/// Lets the peak start again from what is in use now.
void reset_peak(Device device);
/// Gives blocks that nobody holds back to the system.
void release_cached(Device device);

}  // namespace adder
