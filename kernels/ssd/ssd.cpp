#include "adder/kernels/ssd/ssd.h"

#include "adder/core/error.h"
#include "adder/kernels/accumulate.h"

#include <initializer_list>
#include <utility>

namespace adder {
namespace {

std::string text(const Tensor& t) { return t ? to_string(t.shape()) : "nothing"; }

// What flows has x's dtype, and so has the rest, but f32 where x is bf16.
void check_types(const char* op, const Tensor& x, std::initializer_list<const Tensor*> flowing,
                 std::initializer_list<const Tensor*> others) {
  const auto one = [&](const Tensor& t, DType type) {
    if (!t) return;
    check(t.dtype() == type, "{}: x is {} but {} is {}, not {}", op, name(x.dtype()), text(t), name(t.dtype()),
          name(type));
    check(t.device() == x.device(), "{}: x is on {} but {} on {}", op, name(x.device()), text(t), name(t.device()));
  };
  for (const Tensor* t : flowing) one(*t, x.dtype());
  for (const Tensor* t : others) one(*t, x.dtype() == DType::bf16 ? DType::f32 : x.dtype());
}

void check_limits(const char* op, double least, double most) {
  check(least >= 0 && least <= most, "{}: dt_min {} and dt_max {}", op, least, most);
}

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
  check_limits("Ssd", op.dt_min, op.dt_max);
  check(op.chunk >= 0 && op.chunk <= 1024, "Ssd: a chunk of {} tokens is not in [0, 1024]", op.chunk);
  check_types("Ssd", op.x, {&op.dt, &op.B, &op.C, &op.z}, {&op.A_log, &op.D, &op.dt_bias, &op.initial_state});
  check(!op.document || op.document.device() == op.x.device(), "Ssd: x is on {} but document on {}",
        name(op.x.device()), op.document ? name(op.document.device()) : "");
}

// Tokens of [batch, time, item, n] may lie apart, but each must lie side by side.
bool whole_tokens(const Tensor& t) { return !t || t.contiguous() || t.row() == t.shape().count(2, t.rank()); }
Tensor with_whole_tokens(const Tensor& t) { return whole_tokens(t) ? t : contiguous(t); }
Tensor packed(const Tensor& t) { return t ? contiguous(t) : t; }

}  // namespace

std::array<Tensor, 2> Ssd::forward() {
  check_shapes(*this);
  for (Tensor* t : {&x, &dt, &B, &C, &z}) *t = with_whole_tokens(*t);
  for (Tensor* t : {&A_log, &D, &dt_bias, &initial_state, &document}) *t = packed(*t);
  has_initial_state = initial_state.defined();
  const Device device = x.device();
  const int64_t heads = x.size(2), width = x.size(3), state = B.size(3);
  const int64_t kept = on(device, [&](auto backend) { return ssd_states(backend, *this); });
  const SsdResult to{
      .y = empty_like(x),
      .final_state = final_state ? Tensor({x.size(0), heads, width, state}, A_log.dtype(), device) : Tensor(),
      .states = Tensor({kept, heads, width, state}, A_log.dtype(), device),
      .ungated = z ? Tensor(x.shape(), A_log.dtype(), device) : Tensor()};
  on(device, [&](auto backend) { ssd_forward(backend, *this, to); });
  initial_state = {};
  states = to.states;
  ungated = to.ungated;
  return {to.y, to.final_state};
}

void Ssd::backward(const Tensor& dy, const Tensor& dfinal, Grads& to) const {
  // Straight into the tape's place where that may be overwritten, else into a tensor of its own that goes there after.
  std::array<Tensor, 9> own;
  std::array<Slot, 9> slots;
  const auto place = [&](int number, const Tensor& input) {
    const auto i = static_cast<size_t>(number);
    if (to.wants(number)) slots[i] = to.slot(number);
    const bool direct = slots[i].tensor && !slots[i].accumulate && slots[i].tensor.dtype() == input.dtype() &&
                        number != 8 &&
                        (input.rank() > 2 ? whole_tokens(slots[i].tensor) : slots[i].tensor.contiguous());
    return direct ? slots[i].tensor : own[i] = empty_like(input);
  };
  const Tensor state_like({x.size(0), x.size(2), x.size(3), B.size(3)}, A_log.dtype(), x.device());
  const SsdGradients g{.x = place(0, x), .dt = place(1, dt), .A_log = place(2, A_log), .B = place(3, B),
                       .C = place(4, C), .D = to.wants(5) ? place(5, D) : Tensor(),
                       .z = to.wants(6) ? place(6, z) : Tensor(), .dt_bias = to.wants(7) ? place(7, dt_bias) : Tensor(),
                       .initial_state = to.wants(8) ? place(8, state_like) : Tensor()};
  const Tensor upstream = dy ? contiguous(dy) : zeros(x.shape(), x.dtype(), x.device());
  on(x.device(), [&](auto backend) { ssd_backward(backend, *this, upstream, packed(dfinal), g); });
  for (size_t i = 0; i < 9; ++i) {
    if (!own[i] || !slots[i].tensor) continue;
    if (slots[i].accumulate) accumulate(own[i], slots[i].tensor);
    else copy(own[i], slots[i].tensor);
  }
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
  check((!step.D || step.D.shape() == Shape{heads} || step.D.shape() == Shape{heads, x.size(2)}) &&
            (!step.z || step.z.shape() == x.shape()) && (!step.dt_bias || step.dt_bias.shape() == Shape{heads}),
        "ssd_step: x {} but D {}, z {} and dt_bias {}", text(x), text(step.D), text(step.z), text(step.dt_bias));
  check_limits("ssd_step", step.dt_min, step.dt_max);
  check_types("ssd_step", x, {&step.dt, &step.B, &step.C, &step.z}, {&step.A_log, &step.D, &step.dt_bias, &step.state});
  for (const Tensor* t : {&step.A_log, &step.D, &step.dt_bias})
    check(!*t || t->contiguous(), "ssd_step: {} of A_log, D and dt_bias is not contiguous", text(*t));
  return on(x.device(), [&](auto backend) { return ssd_step(backend, step); });
}

}  // namespace adder
