#include "adder/core/traced.h"

#include <nvtx3/nvToolsExt.h>

#include <utility>

namespace adder {
namespace {

thread_local std::shared_ptr<const std::string> open;

}  // namespace

Traced::Traced(const std::string& name) : outer_(std::exchange(open, std::make_shared<const std::string>(name))) {
  nvtxRangePushA(name.c_str());
}

Traced::~Traced() {
  nvtxRangePop();
  open = std::move(outer_);
}

std::shared_ptr<const std::string> Traced::innermost() { return open; }

}  // namespace adder
