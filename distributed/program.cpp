#include "adder/distributed/program.h"

#include "adder/distributed/communicator.h"
#include "adder/distributed/environment.h"

#include <chrono>
#include <cstdio>
#include <new>
#include <thread>

namespace adder {
namespace {

// One of several ranks: says what happened and ends all of them, which may sit in a collective and wait for this one.
[[noreturn]] void end_all(int64_t rank, const std::string& sentence, int status) {
  // What all ranks throw is said once, by the first; what one throws is said two seconds later: a busy machine takes
  // that long to end the others.
  if (rank > 0) std::this_thread::sleep_for(std::chrono::seconds(2));
  std::fprintf(stderr, "error on rank %d: %s\n", static_cast<int>(rank), sentence.c_str());
  std::fflush(nullptr);
  abort_all(status);
}

int end(const std::string& sentence, int status) {
  if (const Communicator world = Communicator::world(); world.size() > 1) end_all(world.rank(), sentence, status);
  std::fprintf(stderr, "error: %s\n", sentence.c_str());
  finalize();
  return status;
}

int end(const HelpShown& help) {
  if (Communicator::world().rank() == 0) std::fputs(help.text.c_str(), stdout);
  finalize();
  return 0;
}

}  // namespace

int exit_status() noexcept {
  try {
    throw;
  } catch (const HelpShown& help) {
    return end(help);
  } catch (const UsageError& error) {
    return end(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return end("out of memory", 1);
  } catch (const std::exception& error) {
    return end(error.what(), 1);
  } catch (...) {
    return end("something that is no exception of the standard library was thrown", 1);
  }
}

}  // namespace adder
