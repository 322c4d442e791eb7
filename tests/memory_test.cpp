#include "adder/core/memory.h"

#include "adder/core/error.h"

#include "catch.h"

using namespace adder;

TEST_CASE("memory: sizes are rounded to eighths of a power of two, but to 2 MiB at most") {
  const auto taken = [](int64_t bytes) {
    const int64_t before = memory_use(Device::cpu).in_use;
    const Storage block(Device::cpu, bytes);
    return memory_use(Device::cpu).in_use - before;
  };
  constexpr int64_t MiB = 1 << 20;
  CHECK(taken(0) == 64);
  CHECK(taken(65) == 128);
  CHECK(taken(1025) == 1152);
  CHECK(taken(9 * MiB - 1) == 9 * MiB);
  CHECK(taken(16 * MiB) == 16 * MiB);
  CHECK(taken(16 * MiB + 1) == 18 * MiB);
  CHECK(taken(40 * MiB + 1) == 42 * MiB);
}

TEST_CASE("memory: a block of the same rounded size is handed out again") {
  void* first = nullptr;
  {
    Storage block(Device::cpu, 1030);
    first = block.data();
  }
  const int64_t reserved = memory_use(Device::cpu).reserved;
  Storage again(Device::cpu, 1140);
  CHECK(again.data() == first);
  CHECK(memory_use(Device::cpu).reserved == reserved);
}

TEST_CASE("memory: a block given back is handed out to others, and its storage gets one of its own again") {
  Storage block(Device::cpu, 5000);
  void* const first = block.data();
  const int64_t before = memory_use(Device::cpu).in_use;
  int made = 0;
  block.give_back([&made] {
    ++made;
    return std::make_shared<Storage>(Device::cpu, 5000);
  });
  CHECK(memory_use(Device::cpu).in_use < before);
  Storage other(Device::cpu, 5000);
  CHECK(other.data() == first);
  CHECK(block.data() != first);
  CHECK(block.data() == block.data());
  CHECK(made == 1);
  CHECK(block.bytes() == 5000);
}

TEST_CASE("memory: blocks of a private pool go to nobody else until it ends, and are reused in it") {
  const int64_t before = memory_use(Device::cpu).in_use;
  void *mine = nullptr, *held = nullptr;
  {
    auto pool = std::make_unique<PrivatePool>(Device::cpu);
    std::unique_ptr<Storage> outlives;
    {
      Storage outside(Device::cpu, 7000);
      pool->open();
      CHECK_THROWS_WITH(PrivatePool(Device::cpu).open(), ContainsSubstring("open already"));
      Storage inside(Device::cpu, 7000);
      mine = inside.data();
      outlives = std::make_unique<Storage>(Device::cpu, 9000);
      held = outlives->data();
    }
    {
      Storage again(Device::cpu, 7000);  // `inside`, not `outside`, though both are free
      CHECK(again.data() == mine);
    }
    pool->close();
    Storage other(Device::cpu, 7000), another(Device::cpu, 7000);
    CHECK(other.data() != mine);
    CHECK(another.data() != mine);
    CHECK(memory_use(Device::cpu).in_use - before == 3 * 7168 + 9216);  // what is set apart counts
    pool.reset();
    CHECK(memory_use(Device::cpu).in_use - before == 2 * 7168 + 9216);
    Storage third(Device::cpu, 7000);
    CHECK(third.data() == mine);
    outlives.reset();
    CHECK(Storage(Device::cpu, 9000).data() == held);
  }
  CHECK(memory_use(Device::cpu).in_use == before);
}
