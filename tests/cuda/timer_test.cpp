// Time on the GPU.
#include "adder/core/timer.h"

#include "adder/core/tensor.h"
#include "adder/tests/places.h"

using namespace adder;

TEST_CASE("cuda timer: more work takes longer, and every pair of marks counts", "[gpu]") {
  if (no_gpu()) return;
  const Tensor small({1 << 16}, DType::f32, Device::cuda), large({1 << 28}, DType::f32, Device::cuda);
  fill(large, 1);  // what the first launch costs
  Timer timer;
  CHECK(timer.milliseconds().empty());
  for (const Tensor& t : {small, large}) {
    timer.start();
    fill(t, 1);
    timer.stop();
  }
  const auto times = timer.milliseconds();
  REQUIRE(times.size() == 2);
  CHECK(times[0] > 0);
  CHECK(times[1] > times[0]);      // 1 GiB against 256 KiB
  CHECK(times[1] > 1024.0 / 2e4);  // no GPU writes 20 TB/s
}
