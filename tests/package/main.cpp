// Built by tests/package_test.sh against an installed adder.
#include "adder/core/error.h"

#include <cstdio>

int main() {
  try {
    adder::fail("a recipe of {} lines", 16);
  } catch (const adder::Error& error) {
    std::printf("%s: %s\n", error.where().c_str(), error.what());
  }
}
