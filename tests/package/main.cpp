// Built by tests/package_test.sh against an installed adder: a product (so OpenBLAS is linked) and an error.
#include "adder/autograd/tape.h"
#include "adder/core/error.h"
#include "adder/kernels/matmul.h"

#include <cstdio>

using namespace adder;

int main() {
  const Tensor x = full({2, 3}, 1.0), weight = full({3, 3}, 2.0);
  std::printf("%g\n", to_host(apply(Matmul{.x = x, .weight = weight}))[0]);
  try {
    fail("a recipe of {} lines", 20);
  } catch (const Error& error) {
    std::printf("%s: %s\n", error.where().c_str(), error.what());
  }
}
