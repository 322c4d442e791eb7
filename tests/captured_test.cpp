#include "adder/core/captured.h"

#include "adder/core/error.h"
#include "adder/core/tensor.h"

#include "catch.h"

using namespace adder;

TEST_CASE("captured: on the CPU a call is a call") {
  int calls = 0;
  auto number = captured(Device::cpu, [&] { return full({1}, ++calls); });
  auto nothing = captured(Device::cpu, [&] { ++calls; });
  for (int i = 1; i <= 4; ++i) CHECK(item(number()) == i);
  nothing();
  CHECK(calls == 5);
  CHECK_FALSE(number.is_graph());
  CHECK(number.eager_because().empty());
  auto throws = captured(Device::cpu, [] { fail("no"); });
  for (int i = 0; i < 3; ++i) CHECK_THROWS_WITH(throws(), "no");
}
