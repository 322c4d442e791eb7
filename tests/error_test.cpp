#include "adder/core/error.h"

#include "catch.h"

using namespace adder;

TEST_CASE("error: check formats one sentence and remembers where it stands") {
  REQUIRE_NOTHROW(check(true, "never {}", 1));
  try {
    check(1 == 2, "RmsNorm: x has {} columns but weight has {}", 3, 4);
    FAIL("did not throw");
  } catch (const Error& error) {
    CHECK(std::string(error.what()) == "RmsNorm: x has 3 columns but weight has 4");
    CHECK(error.where().find("tests/error_test.cpp:") == 0);
  }
}
