#include "adder/core/range.h"

#include <nvtx3/nvToolsExt.h>

namespace adder {

Range::Range(const std::string& name) { nvtxRangePushA(name.c_str()); }
Range::~Range() { nvtxRangePop(); }

}  // namespace adder
