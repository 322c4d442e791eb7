#define CATCH_CONFIG_RUNNER
#include "adder/core/cpu.h"

#include <cstdio>
#include <exception>

#include "catch.h"

int main(int argc, char** argv) {
  try {
    adder::check_processor();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return Catch::Session().run(argc, argv);
}
