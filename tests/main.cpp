#define CATCH_CONFIG_RUNNER
#include "adder/core/cpu.h"
#include "adder/core/device.h"

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
  if (adder::built_with_cuda && adder::gpu_count() == 0) std::puts("no GPU answers: its tests are skipped");
  return Catch::Session().run(argc, argv);
}
