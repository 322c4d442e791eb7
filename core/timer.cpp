#include "adder/core/timer.h"

#include "adder/core/device.h"

namespace adder {

#ifndef ADDER_WITH_CUDA  // otherwise in timer_cuda.cpp
void Timer::mark() { no_cuda(); }
std::vector<double> Timer::milliseconds() const { no_cuda(); }
#endif

}  // namespace adder
