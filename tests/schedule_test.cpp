#include "adder/optim/schedule.h"

#include "adder/core/error.h"

#include "catch.h"

#include <cmath>
#include <string>

using namespace adder;
using Kind = Schedule::Kind;

TEST_CASE("schedule: warm-up reaches the peak on its last step, and the last step has the floor") {
  const Kind kind = GENERATE(Kind::cosine, Kind::linear, Kind::constant, Kind::wsd);
  const Schedule rate{.kind = kind, .peak = 2, .floor = 0.5, .warmup_steps = 10, .steps = 101, .decay_steps = 20};
  CHECK(rate(0) == Approx(0.2));
  CHECK(rate(9) == 2);
  const double end = kind == Kind::constant ? 2 : 0.5;
  CHECK(rate(100) == Approx(end));
  CHECK(rate(1'000'000) == rate(100));
  for (int64_t step = 1; step <= 120; ++step) {
    INFO(name(kind) << " at step " << step);
    if (step < 10) CHECK(rate(step) > rate(step - 1));
    else CHECK(rate(step) <= rate(step - 1));
    CHECK(rate(step) <= 2);
    if (step >= 10) CHECK(rate(step) >= end);
  }
}

TEST_CASE("schedule: the shapes between the ends") {
  const Schedule base{.peak = 1, .floor = 0, .warmup_steps = 0, .steps = 100, .decay_steps = 10};
  const auto with = [&](Kind kind) {
    Schedule s = base;
    s.kind = kind;
    return s;
  };
  CHECK(with(Kind::cosine)(49) == Approx(0.5));
  CHECK(with(Kind::cosine)(24) == Approx(0.5 + 0.25 * std::sqrt(2.0)));
  CHECK(with(Kind::linear)(24) == Approx(0.75));
  CHECK(with(Kind::wsd)(89) == 1);
  CHECK(with(Kind::wsd)(90) == Approx(0.9));
  CHECK(with(Kind::wsd)(99) == Approx(0).margin(1e-15));
  CHECK(with(Kind::constant)(0) == 1);
}

TEST_CASE("schedule: runs that are all warm-up or have no decay hold the peak") {
  CHECK(Schedule{.peak = 3, .warmup_steps = 5, .steps = 5}(7) == 3);
  CHECK(Schedule{.kind = Kind::wsd, .peak = 3, .warmup_steps = 1, .steps = 5, .decay_steps = 0}(9) == 3);
}

TEST_CASE("schedule: names of flags there and back, and impossible ones refused") {
  for (const Kind kind : {Kind::cosine, Kind::linear, Kind::constant, Kind::wsd})
    CHECK(schedule_kind(name(kind)) == kind);
  CHECK(std::string(name(Kind::wsd)) == "wsd");
  CHECK_THROWS_WITH(schedule_kind("exp"), "schedule: \"exp\" is none of cosine, linear, constant, wsd");
  CHECK_THROWS_WITH((Schedule{.warmup_steps = 8, .steps = 7}.validate()),
                    "schedule: 8 warm-up steps and 0 decay steps do not fit into 7 steps");
  CHECK_THROWS_WITH((Schedule{.peak = 1, .floor = 2, .steps = 7}.validate()),
                    "schedule: a rate that ends at 2, which is not from 0 to its peak of 1");
  CHECK_NOTHROW((Schedule{.kind = Kind::constant}.validate()));
}
