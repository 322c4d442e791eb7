#include "adder/kernels/ssd/ssd.h"

#include "adder/core/error.h"

#include <utility>

namespace adder {
namespace {

std::string text(const Tensor& t) { return t ? to_string(t.shape()) : "nothing"; }

void check_shapes(const Ssd& op) {
  check(op.x.defined() && op.x.rank() == 4, "Ssd: x is {}, not [batch, time, head, head_dim]", text(op.x));
  const int64_t batch = op.x.size(0), time = op.x.size(1), heads = op.x.size(2), width = op.x.size(3);
  check(op.x.count() > 0, "Ssd: x {} is empty", text(op.x));
  check(op.dt && op.dt.shape() == Shape{batch, time, heads}, "Ssd: x {} but dt {}", text(op.x), text(op.dt));
  check(op.A_log && op.A_log.shape() == Shape{heads}, "Ssd: {} heads but A_log {}", heads, text(op.A_log));
  check(op.B && op.B.rank() == 4 && op.B.size(0) == batch && op.B.size(1) == time, "Ssd: x {} but B {}", text(op.x),
        text(op.B));
  const int64_t groups = op.B.size(2), state = op.B.size(3);
  check(groups > 0 && heads % groups == 0, "Ssd: {} heads cannot share {} groups of B and C", heads, groups);
  check(state > 0, "Ssd: B {} has no state", text(op.B));
  check(op.C && op.C.shape() == op.B.shape(), "Ssd: B {} but C {}", text(op.B), text(op.C));
  check(!op.D || op.D.shape() == Shape{heads} || op.D.shape() == Shape{heads, width}, "Ssd: x {} but D {}", text(op.x),
        text(op.D));
  check(!op.z || op.z.shape() == op.x.shape(), "Ssd: x {} but z {}", text(op.x), text(op.z));
  check(!op.dt_bias || op.dt_bias.shape() == Shape{heads}, "Ssd: {} heads but dt_bias {}", heads, text(op.dt_bias));
  check(!op.initial_state || op.initial_state.shape() == Shape{batch, heads, width, state},
        "Ssd: x {} and B {} but initial_state {}", text(op.x), text(op.B), text(op.initial_state));
  check(!op.document || (op.document.shape() == Shape{batch, time} && op.document.dtype() == DType::i32),
        "Ssd: x {} but document {}", text(op.x), text(op.document));
  check(op.dt_min >= 0 && op.dt_min <= op.dt_max, "Ssd: dt_min {} and dt_max {}", op.dt_min, op.dt_max);
  check(op.chunk >= 0, "Ssd: a chunk of {} tokens", op.chunk);
}

}  // namespace

std::array<Tensor, 2> Ssd::forward() {
  check_shapes(*this);
  if (initial_state) initial_state = contiguous(initial_state);
  const Device device = x.device();
  const int64_t heads = x.size(2), width = x.size(3), state = B.size(3);
  const int64_t chunks = on(device, [&](auto backend) { return ssd_chunks(backend, *this); });
  SsdResult to{.y = empty_like(x), .final_state = Tensor({x.size(0), heads, width, state}, A_log.dtype(), device),
               .states = Tensor({chunks, heads, width, state}, A_log.dtype(), device),
               .ungated = z ? empty_like(x) : Tensor()};
  on(device, [&](auto backend) { ssd_forward(backend, *this, to); });
  has_initial_state = initial_state.defined();
  initial_state = {};
  states = to.states;
  ungated = to.ungated;
  return {to.y, to.final_state};
}

void Ssd::backward(const Tensor& dy, const Tensor& dfinal, Grads& to) const {
  // Straight into the tape's place where it may be overwritten, else into a tensor of its own that the tape adds.
  std::array<Tensor, 9> fresh;
  const auto place = [&](int i, const Tensor& input, bool needed) {
    if (to.wants(i)) {
      if (const Slot slot = to.slot(i); !slot.accumulate) return slot.tensor;
      return fresh[static_cast<size_t>(i)] = empty_like(input);
    }
    return needed ? empty_like(input) : Tensor();
  };
  SsdGradients g{.x = place(0, x, true), .dt = place(1, dt, true), .A_log = place(2, A_log, true),
                 .B = place(3, B, true), .C = place(4, C, true), .D = D ? place(5, D, false) : Tensor(),
                 .z = z ? place(6, z, false) : Tensor(), .dt_bias = dt_bias ? place(7, dt_bias, false) : Tensor()};
  if (has_initial_state && to.wants(8)) {
    const Slot slot = to.slot(8);
    g.initial_state = slot.accumulate ? fresh[8] = empty_like(slot.tensor) : slot.tensor;
  }
  const Tensor upstream = dy ? contiguous(dy) : zeros(x.shape(), x.dtype(), x.device());
  on(x.device(), [&](auto backend) { ssd_backward(backend, *this, upstream, dfinal ? contiguous(dfinal) : dfinal, g); });
  for (int i = 0; i < 9; ++i)
    if (fresh[static_cast<size_t>(i)]) to.give(i, fresh[static_cast<size_t>(i)]);
}

Tensor ssd_step(const SsdStep& step) {
  const Tensor& x = step.x;
  check(x.defined() && x.rank() == 3 && step.B.defined() && step.B.rank() == 3,
        "ssd_step: x {} and B {}, not [batch, head, head_dim] and [batch, group, state]", text(x), text(step.B));
  const int64_t batch = x.size(0), heads = x.size(1), groups = step.B.size(1);
  check(step.dt.shape() == Shape{batch, heads} && step.A_log.shape() == Shape{heads} && groups > 0 &&
            heads % groups == 0 && step.B.size(0) == batch && step.C.shape() == step.B.shape() &&
            step.state.shape() == Shape{batch, heads, x.size(2), step.B.size(2)} && step.state.contiguous(),
        "ssd_step: x {}, dt {}, A_log {}, B {}, C {} and state {} do not fit", text(x), text(step.dt), text(step.A_log),
        text(step.B), text(step.C), text(step.state));
  return on(x.device(), [&](auto backend) { return ssd_step(backend, step); });
}

}  // namespace adder
