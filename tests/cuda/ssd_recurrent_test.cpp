// What SSD token by token takes of the GPU's memory, and that the result does not depend on it.
#include "adder/kernels/ssd/recurrent.h"

#include "adder/autograd/precision_check.h"
#include "adder/tests/places.h"

#include <algorithm>
#include <array>

using namespace adder;

namespace {

struct Size {
  int64_t batch, time, heads, width, state;
};

// An operator after its forward pass, and room for its gradients.
struct Case {
  Ssd op;
  Tensor dy, dlast;
  SsdGradients to;

  Case(const Size& s, int64_t chunk, bool z) {
    const Shape x{s.batch, s.time, s.heads, s.width}, state{s.batch, s.heads, s.width, s.state};
    const auto random = [](const Shape& shape, uint64_t seed, double scale = 1, double mean = 0) {
      return to_device(random_normal(shape, seed, scale, mean, DType::f32), Device::cuda);
    };
    const Tensor B = random({s.batch, s.time, 1, s.state}, 1);
    op = {.x = random(x, 2), .dt = random(x.axes(0, 3), 3, 0.5, -3), .A_log = random({s.heads}, 4, 0.3), .B = B,
          .C = random(B.shape(), 5), .D = random({s.heads}, 6), .z = z ? random(x, 7) : Tensor(),
          .dt_bias = random({s.heads}, 8, 0.1), .initial_state = random(state, 9), .document = {},
          .chunk = chunk};
    dy = random(x, 10);
    dlast = random(state, 11);
    to.initial_state = empty_like(op.initial_state);
    op.forward();
    const auto like = [](const Tensor& t) { return t ? empty_like(t) : t; };
    to = {.x = like(op.x), .dt = like(op.dt), .A_log = like(op.A_log), .B = like(op.B), .C = like(op.C),
          .D = like(op.D), .z = like(op.z), .dt_bias = like(op.dt_bias), .initial_state = to.initial_state};
  }
  std::vector<Tensor> gradients(int64_t scratch) const {
    const std::array all{to.x, to.dt, to.A_log, to.B, to.C, to.D, to.z, to.dt_bias, to.initial_state};
    for (const Tensor& t : all)
      if (t) fill(t, -7);
    ssd::recurrent_backward(Cuda{compute_stream()}, op, dy, dlast, to, scratch);
    std::vector<Tensor> result;
    for (const Tensor& t : all)
      if (t) result.push_back(to_device(t, Device::cpu));
    return result;
  }
};

constexpr int64_t plenty = int64_t{1} << 30;

}  // namespace

TEST_CASE("cuda ssd token by token: some batch rows at a time give the bits of all at once", "[gpu]") {
  if (no_gpu()) return;
  const Size size = GENERATE(Size{7, 40, 2, 33, 20}, Size{5, 40, 2, 9, 130}, Size{3, 24, 1, 5, 300});
  const Case c(size, 16, true);
  const auto together = c.gradients(plenty);
  for (const int64_t scratch : {int64_t{1}, int64_t{1} << 20, int64_t{1} << 21}) {  // one row at a time, and some
    const auto apart = c.gradients(scratch);
    for (size_t i = 0; i < together.size(); ++i) {
      INFO("scratch " << scratch << ", gradient " << i);
      CHECK(bitwise_equal(apart[i], together[i]));
    }
  }
}

TEST_CASE("cuda ssd token by token: the length of segments makes no difference", "[gpu]") {
  if (no_gpu()) return;
  const Case c({3, 200, 2, 40, 70}, 0, false);
  const auto whole = c.gradients(plenty), cut = c.gradients(1);
  for (size_t i = 0; i < whole.size(); ++i) {
    INFO("gradient " << i);
    if (i == 5) CHECK(relative_rms(cut[i], whole[i]) < 1e-6);  // D: a sum over 600 tokens in two orders
    else CHECK(bitwise_equal(cut[i], whole[i]));
  }
}

TEST_CASE("cuda ssd token by token: scratch of backward stays below 1 GiB, where states alone would be more", "[gpu]") {
  if (no_gpu()) return;
  const Size size = GENERATE(Size{8, 1024, 8, 32, 512}, Size{32, 256, 16, 64, 128});  // 16 GiB of states and 1
  const Case c(size, 0, true);
  reset_peak(Device::cuda);
  const int64_t before = memory_use(Device::cuda).in_use;
  ssd::recurrent_backward(Cuda{compute_stream()}, c.op, c.dy, c.dlast, c.to);
  const int64_t scratch = memory_use(Device::cuda).peak - before;
  CHECK(scratch < int64_t{1} << 30);
  CHECK(scratch > int64_t{1} << 27);  // all rows, or as many as fit, at a time
}
