#include "adder/core/memory.h"

#include "adder/core/block.h"
#include "adder/core/error.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace adder {

void* take_block(Cpu, int64_t bytes) { return std::aligned_alloc(64, static_cast<size_t>(bytes)); }
void give_back_block(Cpu, void* block) { std::free(block); }

// Sizes are rounded up to eighths of a power of two, but to 2 MiB at most.
int64_t pooled_bytes(int64_t bytes) {
  const uint64_t least = std::max<uint64_t>(64, static_cast<uint64_t>(bytes));
  const uint64_t step = std::clamp<uint64_t>(std::bit_floor(least) / 8, 64, uint64_t{2} << 20);
  return static_cast<int64_t>((least + step - 1) / step * step);
}

namespace {

template <class Backend>
class Pool {
 public:
  explicit Pool(Backend backend) : backend_(backend) {}

  void* take(int64_t bytes) {
    const int64_t size = pooled_bytes(bytes);
    const std::lock_guard lock(mutex_);
    void* block = nullptr;
    if (auto& list = free_[size]; !list.empty()) {
      block = list.back();
      list.pop_back();
    } else {
      block = take_block(backend_, size);
      if (block == nullptr && use_.reserved > use_.in_use) {  // blocks of other sizes may make room
        release_free();
        block = take_block(backend_, size);
      }
      if (block == nullptr) fail("out of memory: {} bytes asked for with {} bytes in use", bytes, use_.in_use);
      use_.reserved += size;
    }
    use_.in_use += size;
    use_.peak = std::max(use_.peak, use_.in_use);
    return block;
  }
  void give_back(void* block, int64_t bytes) {
    const int64_t size = pooled_bytes(bytes);
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
      for (void* block : list) give_back_block(backend_, block);
      use_.reserved -= size * static_cast<int64_t>(list.size());
      list.clear();
    }
  }

  Backend backend_;
  std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> free_;  // by rounded size
  MemoryUse use_;
};

// Never destroyed: tensors of static lifetime may outlive any order of destruction.
template <class Backend>
Pool<Backend>& pool(Backend backend) {
  static Pool<Backend>* const pool = new Pool<Backend>(backend);
  return *pool;
}

}  // namespace

// Any thread may ask for a block that was given back; one makes it.
struct Storage::Again {
  std::mutex mutex;
  std::function<std::shared_ptr<Storage>()> make;
};

Storage::Storage(Device device, int64_t bytes)
    : data_(on(device, [&](auto backend) { return pool(backend).take(bytes); })), bytes_(bytes), device_(device) {}

Storage::~Storage() {
  if (data_ != nullptr) on(device_, [&](auto backend) { pool(backend).give_back(data_, bytes_); });
}

void Storage::give_back(std::function<std::shared_ptr<Storage>()> make) {
  if (again_ == nullptr) again_ = std::make_unique<Again>();
  again_->make = std::move(make);
  if (void* const block = data_.exchange(nullptr); block != nullptr)
    on(device_, [&](auto backend) { pool(backend).give_back(block, bytes_); });
}

void* Storage::made_again() {
  const std::lock_guard lock(again_->mutex);
  if (void* const block = data_) return block;  // another thread was here first
  const std::shared_ptr<Storage> made = again_->make();
  check(made && made.get() != this && made.use_count() == 1 && made->bytes_ == bytes_ && made->device_ == device_,
        "memory: what was made again in place of {} bytes is {}", bytes_,
        made == nullptr ? "nothing" : fmt::format("{} bytes held by {}", made->bytes_, made.use_count()));
  void* const block = made->data();
  made->data_ = nullptr;
  again_->make = nullptr;  // lets go of what it held
  data_.store(block, std::memory_order_release);
  return block;
}

MemoryUse memory_use(Device device) {
  return on(device, [](auto backend) { return pool(backend).use(); });
}
void reset_peak(Device device) {
  on(device, [](auto backend) { pool(backend).reset_peak(); });
}
void release_cached(Device device) {
  on(device, [](auto backend) { pool(backend).release(); });
}

}  // namespace adder
