// What fill() and copy() of core/tensor.h do on the GPU. All of it is ordered by the compute stream. Copies between
// host and GPU throw while the stream is recorded (core/captured.h): a replay would not read the host's numbers again.
#pragma once

#include "adder/core/tensor.h"

#include <functional>

namespace adder {

void fill(Cuda on, const Tensor& t, double value);
/// Within the GPU; any pitch on both sides, converting.
void copy(Cuda on, const Tensor& from, const Tensor& to);
/// From t.count() elements in host memory, which may be changed as soon as this returns. Does not wait for the GPU.
void upload(Cuda on, const void* host, const Tensor& to);
/// To t.count() elements in host memory. Waits for them.
void download(Cuda on, const Tensor& from, void* host);
/// Begins to copy a contiguous tensor to the host. Does not wait for the GPU; the function returned does, and gives it.
std::function<Tensor()> fetch(Cuda on, const Tensor& from);

}  // namespace adder
