#include "adder/core/device.h"

#include "adder/core/dtype.h"
#include "adder/core/error.h"

namespace adder {

const char* name(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

void no_cuda() { fail("this adder was built without CUDA: use the device cpu, or build where nvcc is found"); }

#ifndef ADDER_WITH_CUDA  // otherwise in device_cuda.cpp
int gpu_count() { return 0; }
std::string gpu_fault() { return {}; }
std::string gpu_id(int) { no_cuda(); }
void choose_gpu(int) { no_cuda(); }
std::string describe_gpu() { no_cuda(); }
std::string describe_gpu(int) { no_cuda(); }
std::string gpu_name() { no_cuda(); }
int64_t gpu_memory() { no_cuda(); }
CUstream_st* compute_stream() { no_cuda(); }
CUstream_st* communication_stream() { no_cuda(); }
CUstream_st* copy_stream() { no_cuda(); }
void synchronize() {}
#endif

const char* name(DType type) {
  switch (type) {
    case DType::f32: return "f32";
    case DType::f64: return "f64";
    case DType::bf16: return "bf16";
    case DType::i32: return "i32";
  }
  return "?";
}

int64_t size_of(DType type) {
  switch (type) {
    case DType::f64: return 8;
    case DType::bf16: return 2;
    default: return 4;
  }
}

void no_such_dtype(const char* op, DType type) { fail("{} does not compute in {}", op, name(type)); }

}  // namespace adder
