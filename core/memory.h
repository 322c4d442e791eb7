// Memory: a caching pool. Blocks go back to the pool when the last tensor lets go and are handed out again by size, so
// a training step of fixed shapes asks the system for memory in its first step only.
#pragma once

#include "adder/core/device.h"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace adder {

/// A block of device memory, returned to its pool on destruction. Not initialised; aligned to 64 bytes, 256 on the GPU.
class Storage {
 public:
  Storage(Device device, int64_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void* data_;
  int64_t bytes_;     // as asked for
  Device device_;
};

/// Bytes of a device's pool: now handed out, the most that ever was, and taken from the system.
struct MemoryUse {
  int64_t in_use = 0, peak = 0, reserved = 0;
};
MemoryUse memory_use(Device device);
/// Lets the peak start again from what is in use now.
void reset_peak(Device device);
/// Gives blocks that nobody holds back to the system.
void release_cached(Device device);

}  // namespace adder
