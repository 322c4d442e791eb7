// Where operators are tested: every backend that this machine has.
#pragma once

#include "adder/autograd/precision_check.h"

#include "catch.h"

#include <vector>

/// The CPU in f32; and in f32 and bf16 the GPU, if one answers.
inline std::vector<adder::Place> places() {
  using namespace adder;
  if (gpu_count() == 0) return {{Device::cpu, DType::f32}};
  return {{Device::cpu, DType::f32}, {Device::cuda, DType::f32}, {Device::cuda, DType::bf16}};
}

/// For tests that are about the GPU: a build with CUDA says that they are skipped.
inline bool no_gpu() {
  if (adder::gpu_count() > 0) return false;
  if (adder::built_with_cuda) WARN("skipped: no GPU answers");
  return true;
}

/// Checks f at a place: bf16 below 5e-3, f32 below `tolerance`.
inline void check_at(const adder::Place& place, const adder::TensorFunction& f,
                     const std::vector<adder::Tensor>& inputs, double tolerance) {
  const auto result = adder::check_precision(f, inputs, place);
  INFO(adder::name(place) << ", " << result.worst);
  CHECK(result.error < (place.type == adder::DType::bf16 ? 5e-3 : tolerance));
}
