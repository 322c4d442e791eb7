// A program of several ranks that ends in each of the ways a run may end; tests/mpi_ends_test.sh runs it.
#include "adder/core/error.h"
#include "adder/distributed/run.h"

#include <unistd.h>

#include <thread>

using namespace adder;

int main(int argc, char** argv) try {
  std::string how = "well";
  Flags flags("Ends in one way or another.");
  flags.add("how", how, "the way", {.choices = {"well", "throw", "throw-all", "die", "wait"}});
  Run run(argc, argv, std::move(flags), {.out = "run", .device = "cpu"});
  const Communicator& world = run.mesh().world;
  run.start({.steps = 1000});
  const Tensor x = full({1000}, 1, DType::f32, run.device());
  for (int64_t step = 1; step <= 1000 && !run.stopping(); ++step) {
    world.all_reduce(x, Reduce::max);
    run.log(step, {{"loss", x.slice_first(0, 1)}});
    if (how == "well" && step == 10) break;
    if (how == "wait") std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (step < 5) continue;
    check(how != "throw-all", "everyone is tired at step {}", step);
    check(how != "throw" || world.rank() != world.size() - 1, "no more of step {}", step);
    if (how == "die" && world.rank() == 1) _exit(3);
  }
  run.finish();
  run.say("done");
} catch (...) {
  return adder::exit_status();
}
