// Time on the GPU.
#pragma once

#include <memory>
#include <vector>

struct CUevent_st;

namespace adder {

/// Measures pieces of the work on the compute stream. start() and stop() mark points in it and do not wait.
class Timer {
 public:
  void start() { mark(); }
  void stop() { mark(); }
  /// The time between each start and its stop. Waits for the last one.
  std::vector<double> milliseconds() const;

 private:
  void mark();
  std::vector<std::shared_ptr<CUevent_st>> points_;
};

}  // namespace adder
