#include "adder/core/memory.h"

#include "adder/core/error.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace adder {
namespace {

// Sizes are rounded up to eighths of a power of two: at most 12.5 % is wasted and blocks of near sizes are shared.
int64_t rounded(int64_t bytes) {
  const uint64_t least = std::max<uint64_t>(64, static_cast<uint64_t>(bytes));
  const uint64_t step = std::max<uint64_t>(64, std::bit_floor(least) / 8);
  return static_cast<int64_t>((least + step - 1) / step * step);
}

class CpuPool {
 public:
  void* take(int64_t bytes) {
    const int64_t size = rounded(bytes);
    const std::lock_guard lock(mutex_);
    void* block = nullptr;
    if (auto& list = free_[size]; !list.empty()) {
      block = list.back();
      list.pop_back();
    } else {
      block = std::aligned_alloc(64, static_cast<size_t>(size));
      if (block == nullptr) {  // blocks of other sizes may be in the way
        release_free();
        block = std::aligned_alloc(64, static_cast<size_t>(size));
      }
      check(block != nullptr, "out of memory: {} bytes asked for with {} bytes in use", bytes, use_.in_use);
      use_.reserved += size;
    }
    use_.in_use += size;
    use_.peak = std::max(use_.peak, use_.in_use);
    return block;
  }
  void give_back(void* block, int64_t bytes) {
    const int64_t size = rounded(bytes);
    const std::lock_guard lock(mutex_);
    use_.in_use -= size;
    free_[size].push_back(block);
  }
  void release() {
    const std::lock_guard lock(mutex_);
    release_free();
  }
  MemoryUse use() {
    const std::lock_guard lock(mutex_);
    return use_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    use_.peak = use_.in_use;
  }

 private:
  void release_free() {
    for (auto& [size, list] : free_) {
      for (void* block : list) std::free(block);
      use_.reserved -= size * static_cast<int64_t>(list.size());
      list.clear();
    }
  }

  std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> free_;  // by rounded size
  MemoryUse use_;
};

// Never destroyed: tensors of static lifetime may outlive any order of destruction.
CpuPool& cpu_pool() {
  static CpuPool* const pool = new CpuPool;
  return *pool;
}

}  // namespace

Storage::Storage(Device device, int64_t bytes) : data_(nullptr), bytes_(bytes), device_(device) {
  if (device == Device::cuda) no_cuda();
  data_ = cpu_pool().take(bytes);
}

Storage::~Storage() { cpu_pool().give_back(data_, bytes_); }

MemoryUse memory_use(Device) { return cpu_pool().use(); }
void reset_peak(Device) { cpu_pool().reset_peak(); }
void release_cached(Device) { cpu_pool().release(); }

}  // namespace adder
