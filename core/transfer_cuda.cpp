// Copies between host and GPU, through page-locked staging blocks: so the host need not wait for the GPU.
#include "adder/core/captured.h"
#include "adder/core/copy.h"
#include "adder/core/cuda.cuh"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace adder {
namespace {

constexpr int64_t block_bytes = 1 << 20;

struct FreePinned {
  void operator()(char* block) const { cudaFreeHost(block); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};

// A block of page-locked memory, and when the last copy through it will have ended.
class Staging {
 public:
  char* data() const { return data_.get(); }
  void wait() const { check(cudaEventSynchronize(done_.get()), "a copy between host and GPU"); }
  void used(Cuda on) const { check(cudaEventRecord(done_.get(), on.stream), "a copy between host and GPU"); }
  void prepare(int64_t bytes = block_bytes) {
    if (data_) return wait();
    void* block = nullptr;
    check(cudaHostAlloc(&block, static_cast<size_t>(bytes), cudaHostAllocDefault), "page-locked memory");
    data_.reset(static_cast<char*>(block));
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "a new CUDA event");
    done_.reset(event);
  }

 private:
  std::unique_ptr<char, FreePinned> data_;
  std::unique_ptr<CUevent_st, DestroyEvent> done_;
};

// Blocks in turn: a copy waits only when as many as these are under way.
struct Ring {
  std::mutex mutex;
  std::array<Staging, 64> blocks;
  size_t next_block = 0;

  Staging& next() {
    Staging& block = blocks[next_block++ % blocks.size()];
    block.prepare();
    return block;
  }
};

Ring& ring() {
  static Ring* const all = new Ring;  // never destroyed: the driver may be gone by then
  return *all;
}

// Places for a few numbers each, of one tensor at a time.
struct Numbers {
  std::mutex mutex;
  std::map<int64_t, std::vector<std::unique_ptr<Staging>>> free;  // by bytes

  std::shared_ptr<Staging> take(int64_t bytes);
};

Numbers& numbers() {
  static Numbers* const all = new Numbers;  // never destroyed, as the ring
  return *all;
}

std::shared_ptr<Staging> Numbers::take(int64_t bytes) {
  const std::lock_guard lock(mutex);
  auto& list = free[bytes];
  if (list.empty()) list.push_back(std::make_unique<Staging>());
  std::unique_ptr<Staging> place = std::move(list.back());
  list.pop_back();
  place->prepare(bytes);  // whose last numbers may still be on their way
  return {place.release(), [bytes](Staging* used) {
            const std::lock_guard giving_back(numbers().mutex);
            numbers().free[bytes].emplace_back(used);
          }};
}

void refuse_recording() {
  if (capturing()) fail("a copy between host and GPU cannot be part of a CUDA graph");
}

// Rows side by side on the host (`offset` bytes from the start), `pitch` bytes apart on the GPU.
struct Piece {
  int64_t offset;
  char* device;
  int64_t width, rows, pitch;
  int64_t bytes() const { return width * rows; }
};

// Calls f(piece) for pieces of a tensor that fit into a staging block.
template <class F>
void each_piece(const Tensor& t, F&& f) {
  if (t.count() == 0) return;
  const int64_t size = size_of(t.dtype()), total = t.count() * size;
  const int64_t width = t.contiguous() ? total : t.row() * size, pitch = t.contiguous() ? total : t.pitch() * size;
  const int64_t rows = total / width, step = std::max<int64_t>(1, block_bytes / width);
  char* const start = static_cast<char*>(t.address());
  for (int64_t row = 0; row < rows; row += step)
    for (int64_t column = 0; column < width; column += block_bytes)  // once, unless a row exceeds a block
      f(Piece{row * width + column, start + row * pitch + column, std::min(block_bytes, width - column),
              std::min(step, rows - row), pitch});
}

void transfer(Cuda on, const Piece& p, void* to, int64_t to_pitch, const void* from, int64_t from_pitch) {
  const auto width = static_cast<size_t>(p.width);
  if (p.rows == 1)
    check(cudaMemcpyAsync(to, from, width, cudaMemcpyDefault, on.stream), "a copy between host and GPU");
  else
    check(cudaMemcpy2DAsync(to, static_cast<size_t>(to_pitch), from, static_cast<size_t>(from_pitch), width,
                            static_cast<size_t>(p.rows), cudaMemcpyDefault, on.stream), "a copy between host and GPU");
}

}  // namespace

std::function<Tensor()> fetch(Cuda on, const Tensor& from) {
  refuse_recording();
  const int64_t bytes = from.count() * size_of(from.dtype());
  const std::shared_ptr<Staging> place = numbers().take(bytes);
  check(cudaMemcpyAsync(place->data(), from.address(), static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, on.stream),
        "numbers from the GPU");
  place->used(on);
  return [place, bytes, type = from.dtype(), shape = from.shape()] {
    place->wait();
    const Tensor numbers(shape, type);
    std::memcpy(numbers.address(), place->data(), static_cast<size_t>(bytes));
    return numbers;
  };
}

void upload(Cuda on, const void* host, const Tensor& to) {
  refuse_recording();
  const std::lock_guard lock(ring().mutex);
  each_piece(to, [&](const Piece& p) {
    const Staging& block = ring().next();
    std::memcpy(block.data(), static_cast<const char*>(host) + p.offset, static_cast<size_t>(p.bytes()));
    transfer(on, p, p.device, p.pitch, block.data(), p.width);
    block.used(on);
  });
}

void download(Cuda on, const Tensor& from, void* host) {
  refuse_recording();
  const std::lock_guard lock(ring().mutex);
  const Staging* before = nullptr;  // while one block is emptied, the next one fills
  Piece piece{};
  const auto empty = [&] {
    if (before == nullptr) return;
    before->wait();
    std::memcpy(static_cast<char*>(host) + piece.offset, before->data(), static_cast<size_t>(piece.bytes()));
  };
  each_piece(from, [&](const Piece& p) {
    const Staging& block = ring().next();
    transfer(on, p, block.data(), p.width, p.device, p.pitch);
    block.used(on);
    empty();
    before = &block;
    piece = p;
  });
  empty();
}

}  // namespace adder
