#include "adder/distributed/gpus.h"

#include "adder/core/device.h"
#include "adder/distributed/nccl.h"
#include "adder/tests/places.h"

#include "catch.h"

using namespace adder;

TEST_CASE("gpus: where all processes of a host see all its GPUs, the k-th of them gets GPU k") {
  const std::vector<std::string> on_a = {"a0", "a1", "a2"}, on_b = {"b0", "b1"};
  const GpuShares shares = share_gpus({{"a", on_a}, {"b", on_b}, {"a", on_a}, {"b", on_b}, {"a", on_a}});
  CHECK(shares.own == std::vector<int>{0, 0, 1, 1, 2});
  CHECK(shares.shortage.empty());
  CHECK(shares.text == "ranks 0, 2, 4 on GPUs 0, 1, 2 of a; ranks 1, 3 on GPUs 0, 1 of b");
  CHECK(share_gpus({{"a", on_a}}).text == "rank 0 on GPU 0 of a");
}

TEST_CASE("gpus: a launcher that shows each process another GPU is followed") {
  CHECK(share_gpus({{"a", {"x"}}, {"a", {"y"}}}).own == std::vector<int>{0, 0});
  CHECK(share_gpus({{"a", {"x", "y"}}, {"a", {"y", "x"}}}).own == std::vector<int>{0, 0});
  CHECK(share_gpus({{"a", {"x", "y"}}, {"a", {"x", "z"}}}).own == std::vector<int>{0, 1});
}

TEST_CASE("gpus: one host with too few is enough for none, and is named with both numbers") {
  const std::vector<std::string> two = {"x", "y"};
  const GpuShares shares = share_gpus({{"a", {"p", "q", "r"}}, {"b", two}, {"b", two}, {"b", two}, {"b", two}});
  CHECK(shares.own.empty());
  CHECK(shares.text.empty());
  CHECK(shares.shortage == "4 processes on b but 2 GPUs");
  CHECK(share_gpus({{"a", {"x"}}, {"a", {"x"}}}).shortage == "2 processes on a but 1 GPU");
  CHECK(share_gpus({{"a", {"x"}}, {"b", {}}}).shortage == "1 process on b but 0 GPUs");
  CHECK(share_gpus({{"a", two}, {"a", {"x"}}}).shortage == "a process on a sees no GPU that no other one has");
}

TEST_CASE("gpus: a program of one process has the first GPU, if any, in a build with NCCL") {
  const bool here = built_with_nccl && gpu_count() > 0;
  CHECK(share_gpus(Communicator()).own == (here ? std::vector<int>{0} : std::vector<int>{}));
}

TEST_CASE("gpus: GPUs have names of their own", "[gpu][small]") {
  if (no_gpu()) return;
  for (int i = 0; i < gpu_count(); ++i) {
    CHECK(gpu_id(i).size() == 32);
    for (int j = 0; j < i; ++j) CHECK(gpu_id(i) != gpu_id(j));
  }
}
