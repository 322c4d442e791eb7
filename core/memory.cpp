#include "adder/core/memory.h"

#include "adder/core/block.h"
#include "adder/core/error.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
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
    if (open_ != 0)
      if (void* const block = pop(apart_[open_], size)) return block;  // counted already
    void* block = pop(free_, size);
    if (block == nullptr) block = from_system(size, bytes);
    if (open_ != 0) owner_[block] = open_;
    use_.in_use += size;
    use_.peak = std::max(use_.peak, use_.in_use);
    return block;
  }
  void give_back(void* block, int64_t bytes) {
    const int64_t size = pooled_bytes(bytes);
    const std::lock_guard lock(mutex_);
    if (const auto owner = owner_.find(block); owner != owner_.end()) {
      apart_[owner->second][size].push_back(block);
      return;
    }
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

  // Private pools go by number, from 1.
  int64_t begin_private() {
    const std::lock_guard lock(mutex_);
    apart_[++last_private_];
    return last_private_;
  }
  void open_private(int64_t number) {
    const std::lock_guard lock(mutex_);
    check(open_ == 0, "memory: a private pool is open already");
    open_ = number;
  }
  void close_private() {
    const std::lock_guard lock(mutex_);
    open_ = 0;
  }
  void end_private(int64_t number) {
    const std::lock_guard lock(mutex_);
    if (open_ == number) open_ = 0;
    for (const auto& [size, list] : apart_[number]) {
      use_.in_use -= size * static_cast<int64_t>(list.size());
      free_[size].insert(free_[size].end(), list.begin(), list.end());
    }
    apart_.erase(number);
    std::erase_if(owner_, [&](const auto& block) { return block.second == number; });
  }

 private:
  using Lists = std::map<int64_t, std::vector<void*>>;  // free blocks by rounded size

  static void* pop(Lists& lists, int64_t size) {
    auto& list = lists[size];
    if (list.empty()) return nullptr;
    void* const block = list.back();
    list.pop_back();
    return block;
  }
  void* from_system(int64_t size, int64_t bytes) {
    void* block = take_block(backend_, size);
    if (block == nullptr && use_.reserved > use_.in_use && open_ == 0) {  // blocks of other sizes may make room
      release_free();
      block = take_block(backend_, size);
    }
    if (block == nullptr) fail("out of memory: {} bytes asked for with {} bytes in use", bytes, use_.in_use);
    use_.reserved += size;
    return block;
  }
  void release_free() {
    if (open_ != 0) return;  // to give a block back would become a part of the graph
    for (auto& [size, list] : free_) {
      for (void* block : list) give_back_block(backend_, block);
      use_.reserved -= size * static_cast<int64_t>(list.size());
      list.clear();
    }
  }

  Backend backend_;
  std::mutex mutex_;
  Lists free_;
  std::map<int64_t, Lists> apart_;             // of private pools
  std::unordered_map<void*, int64_t> owner_;   // of every block of theirs
  int64_t open_ = 0, last_private_ = 0;
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

PrivatePool::PrivatePool(Device device)
    : device_(device), number_(on(device, [](auto backend) { return pool(backend).begin_private(); })) {}
PrivatePool::~PrivatePool() {
  on(device_, [&](auto backend) { pool(backend).end_private(number_); });
}
void PrivatePool::open() const {
  on(device_, [&](auto backend) { pool(backend).open_private(number_); });
}
void PrivatePool::close() const {
  on(device_, [](auto backend) { pool(backend).close_private(); });
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
