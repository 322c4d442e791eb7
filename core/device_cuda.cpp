// The GPU of this process: checked calls, the choice of the device, its streams.
#include "adder/core/cuda.cuh"
#include "adder/core/device.h"
#include "adder/core/error.h"

#include <atomic>
#include <memory>

namespace adder {
namespace {

struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<CUstream_st, DestroyStream>;

Stream new_stream(int priority) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority), "a new CUDA stream");
  return Stream(stream);
}

std::atomic<int> chosen = 0;
std::atomic<bool> in_use = false;

struct Gpu {
  int device;
  Stream compute, communication, copy;
};

cudaDeviceProp properties(int device) {
  cudaDeviceProp result{};
  check(cudaGetDeviceProperties(&result, device), "the properties of the GPU");
  return result;
}

void check_architecture(int device) {
  const cudaError_t status = load_kernels();
  const cudaDeviceProp gpu = properties(device);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction)
    fail("this adder was built for another GPU architecture ({}; {} has {}.{}): build it on this machine",
         architectures(), gpu.name, gpu.major, gpu.minor);
  check(status, "the kernels of this build");
}

// How the driver answered when it was asked for GPUs.
struct Answer {
  int gpus = 0;
  std::string fault = {};
};

const Answer& answer() {
  static const Answer found = [] {
    int gpus = 0, driver = 0;
    const cudaError_t status = cudaGetDeviceCount(&gpus);
    if (status == cudaSuccess) return Answer{.gpus = gpus};
    cudaGetLastError();
    // Where there is no driver, the driver counts as too old.
    const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
    if (status == cudaErrorNoDevice || (status == cudaErrorInsufficientDriver && !has_driver)) return Answer{};
    return Answer{.fault = cudaGetErrorString(status)};
  }();
  return found;
}

Gpu open_gpu() {
  in_use = true;
  const int device = chosen;
  check(cudaSetDevice(device), "the choice of the GPU");
  check_architecture(device);
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "the priorities of CUDA streams");
  return {device, new_stream(least), new_stream(greatest), new_stream(least)};
}

const Gpu& gpu() {
  // Never destroyed: at exit the driver may be gone before the last tensor is.
  static const Gpu* const opened = new Gpu(open_gpu());
  thread_local const bool current = (check(cudaSetDevice(opened->device), "the choice of the GPU"), true);
  (void)current;
  return *opened;
}

}  // namespace

void check(cudaError_t status, const char* what, std::source_location at) {
  if (status == cudaSuccess) [[likely]] return;
  cudaGetLastError();  // an error that can be recovered from is not reported twice
  throw Error(fmt::format("{}: {}", what, cudaGetErrorString(status)), at);
}

void check_launch(cudaError_t status, const void* kernel, std::source_location at) {
  if (status == cudaSuccess) [[likely]] return;
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess || name == nullptr) name = "?";
  check(status, fmt::format("launch of the kernel {}", name).c_str(), at);
}

void fail(const char* sentence, std::source_location at) { throw Error(sentence, at); }

int gpu_count() { return answer().gpus; }
std::string gpu_fault() { return answer().fault; }

std::string gpu_id(int index) {
  std::string id;
  for (const char byte : properties(index).uuid.bytes) id += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return id;
}

void choose_gpu(int index) {
  check(index >= 0 && index < gpu_count(), "GPU {} of {}", index, gpu_count());
  check(!in_use || index == chosen, "GPU {} cannot be chosen: this process works on GPU {}", index, chosen.load());
  chosen = index;
}

std::string gpu_name() { return properties(chosen).name; }
int64_t gpu_memory() { return static_cast<int64_t>(properties(chosen).totalGlobalMem); }
std::string describe_gpu() { return describe_gpu(chosen); }

std::string describe_gpu(int index) {
  const cudaDeviceProp gpu = properties(index);
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "the version of the driver");
  check(cudaRuntimeGetVersion(&runtime), "the version of CUDA");
  const auto version = [](int v) { return fmt::format("{}.{}", v / 1000, v % 1000 / 10); };
  return fmt::format("{}, {:.1f} GiB, driver for CUDA {}, runtime {}", gpu.name,
                     static_cast<double>(gpu.totalGlobalMem) / (1 << 30), version(driver), version(runtime));
}

CUstream_st* compute_stream() { return gpu().compute.get(); }
CUstream_st* communication_stream() { return gpu().communication.get(); }
CUstream_st* copy_stream() { return gpu().copy.get(); }
void synchronize() {
  if (in_use) check(cudaStreamSynchronize(compute_stream()), "work on the GPU");
}

}  // namespace adder
