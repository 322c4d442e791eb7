// When the GPU did what, by the records that CUPTI, a part of the CUDA toolkit, keeps of kernels, copies and fills.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace adder {

/// One kernel, copy or fill.
struct Activity {
  std::string kernel;       // as the compiler calls it; empty: a copy or a fill
  int64_t begin = 0, end = 0;  // nanoseconds
};

/// Whether this build can see activities: where it has found CUPTI.
bool sees_activities();
/// All that the GPU does in f, by its beginning. Waits for the GPU before and after. Throws, naming the reason, if some
/// of it cannot be seen.
std::vector<Activity> activities(const std::function<void()>& f);

}  // namespace adder
