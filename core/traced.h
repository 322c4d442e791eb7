// Traced: a stretch of the program that a profiler shows by name, for as long as the object lives.
#pragma once

#include <memory>
#include <string>

namespace adder {

#ifdef ADDER_WITH_CUDA
/// An NVTX range: Nsight Systems shows the kernels that were queued in it under this name.
class Traced {
 public:
  explicit Traced(const std::string& name);
  ~Traced();
  Traced(const Traced&) = delete;
  Traced& operator=(const Traced&) = delete;

  /// The name of the innermost range that is open on this thread; null: none is.
  static std::shared_ptr<const std::string> innermost();

 private:
  std::shared_ptr<const std::string> outer_;
};
#else
struct Traced {
  explicit Traced(const std::string&) {}
  ~Traced() {}  // an object that only lives is no unused variable
  static std::shared_ptr<const std::string> innermost() { return nullptr; }
};
#endif

}  // namespace adder
