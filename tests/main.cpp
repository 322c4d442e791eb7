// Catch's main, for the unit tests and for those of several processes: one session on every rank, over the same tests
// in the same order. Rank 0 reports. A rank on which something fails reports that and ends all of them: the others may
// be waiting for it. What fails on all is said by the first.
#define CATCH_CONFIG_RUNNER
#include "adder/core/cpu.h"
#include "adder/core/device.h"
#include "adder/distributed/communicator.h"
#include "adder/distributed/environment.h"
#include "adder/distributed/program.h"

#include <chrono>
#include <iostream>
#include <sstream>
#include <thread>

#include "catch.h"

int main(int argc, char** argv) try {
  const adder::Environment environment;
  adder::check_processor();
  if (adder::built_with_cuda && adder::gpu_count() == 0) std::cout << "no GPU answers: its tests are skipped\n";
  if (adder::Communicator::world().size() == 1) return Catch::Session().run(argc, argv);
  const int64_t rank = adder::Communicator::world().rank();
  std::ostringstream report;
  std::streambuf* const terminal = std::cout.rdbuf();
  if (rank > 0) std::cout.rdbuf(report.rdbuf());
  int failures = 0;
  {
    Catch::Session session;
    session.configData().abortAfter = 1;
    failures = session.run(argc, argv);
  }
  std::cout.rdbuf(terminal);
  if (failures != 0) {
    if (rank > 0) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    std::cout << report.str() << "this was rank " << rank << std::endl;
    adder::abort_all(1);
  }
  return 0;
} catch (...) {
  return adder::exit_status();
}
