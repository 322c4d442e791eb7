#include "adder/core/traced.h"

#include <nvtx3/nvToolsExt.h>

namespace adder {

Traced::Traced(const std::string& name) { nvtxRangePushA(name.c_str()); }
Traced::~Traced() { nvtxRangePop(); }

}  // namespace adder
