// Copies between host and GPU, through page-locked staging blocks: so the host need not wait for the GPU.
#include "adder/core/copy.h"
#include "adder/core/cuda.cuh"

#include <algorithm>
#include <array>
#include <cstring>
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

// Places for single elements, each for one number at a time.
struct Numbers {
  std::mutex mutex;
  std::vector<std::unique_ptr<Staging>> free;

  std::shared_ptr<Staging> take();
};

Numbers& numbers() {
  static Numbers* const all = new Numbers;  // never destroyed, as the ring
  return *all;
}

std::shared_ptr<Staging> Numbers::take() {
  const std::lock_guard lock(mutex);
  if (free.empty()) free.push_back(std::make_unique<Staging>());
  std::unique_ptr<Staging> place = std::move(free.back());
  free.pop_back();
  place->prepare(sizeof(double));  // whose last number may still be on its way
  return {place.release(), [](Staging* used) {
            const std::lock_guard giving_back(numbers().mutex);
            numbers().free.emplace_back(used);
          }};
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

std::function<double()> fetch(Cuda on, const Tensor& from) {
  const std::shared_ptr<Staging> place = numbers().take();
  const DType type = from.dtype();
  const auto bytes = static_cast<size_t>(size_of(type));
  check(cudaMemcpyAsync(place->data(), from.address(), bytes, cudaMemcpyDeviceToHost, on.stream),
        "a number from the GPU");
  place->used(on);
  return [place, type, bytes] {
    place->wait();
    const Tensor number({1}, type);
    std::memcpy(number.address(), place->data(), bytes);
    return item(number);
  };
}

void upload(Cuda on, const void* host, const Tensor& to) {
  const std::lock_guard lock(ring().mutex);
  each_piece(to, [&](const Piece& p) {
    const Staging& block = ring().next();
    std::memcpy(block.data(), static_cast<const char*>(host) + p.offset, static_cast<size_t>(p.bytes()));
    transfer(on, p, p.device, p.pitch, block.data(), p.width);
    block.used(on);
  });
}

void download(Cuda on, const Tensor& from, void* host) {
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
