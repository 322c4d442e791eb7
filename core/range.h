// Range: a stretch of the program that a profiler shows by name, for as long as the object lives.
#pragma once

#include <string>

namespace adder {

#ifdef ADDER_WITH_CUDA
/// An NVTX range: Nsight Systems shows the kernels that were queued in it under this name.
class Range {
 public:
  explicit Range(const std::string& name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};
#else
struct Range {
  explicit Range(const std::string&) {}
  ~Range() {}  // an object that only lives is no unused variable
};
#endif

}  // namespace adder
