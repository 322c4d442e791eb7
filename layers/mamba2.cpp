#include "adder/layers/mamba2.h"

#include "adder/autograd/recompute.h"
#include "adder/core/error.h"
#include "adder/kernels/elementwise.h"
#include "adder/kernels/gated_rms_norm.h"
#include "adder/kernels/mamba2_step.h"
#include "adder/kernels/ssd/ssd.h"
#include "adder/kernels/view.h"

#include <algorithm>
#include <cmath>

namespace adder::layers {
namespace {

// Rows of in_proj. z and x are cut over ranks by heads, B and C by groups, each group held by all ranks of its heads.
std::vector<Params::Part> in_proj_parts(const Mamba2Options& o, const Init& init, bool weight, int64_t replicas) {
  std::vector<Params::Part> parts;
  const auto add = [&](const char* name, int64_t rows, int64_t copies = 1) {
    if (rows > 0)
      parts.push_back({name, rows, init, {.decay = weight, .product = weight, .shard_axis = 0, .replicas = copies}});
  };
  add("z0", o.mlp());
  add("x0", o.mlp());
  add("z", o.ssm());
  add("x", o.ssm());
  add("B", o.groups * o.d_state, replicas);
  add("C", o.groups * o.d_state, replicas);
  add("dt", o.heads());
  return parts;
}

std::vector<CausalConv1d::Part> conv_parts(const Mamba2Options& o, int64_t replicas) {
  return {{"x", o.ssm()}, {"B", o.groups * o.d_state, replicas}, {"C", o.groups * o.d_state, replicas}};
}

// The inverse of softplus at Δ, log-uniform in [min, max] and at least floor.
Init dt_bias_init(const Mamba2Options& o) {
  return [=](const Random& random, uint64_t i) {
    const double low = std::log(o.dt_init_min), high = std::log(o.dt_init_max);
    const double delta = std::max(std::exp(low + (high - low) * random.uniform(i)), o.dt_init_floor);
    return delta + std::log(-std::expm1(-delta));
  };
}

Init A_log_init(const Mamba2Options& o) {
  return [=](const Random& random, uint64_t i) { return std::log(o.A_min + (o.A_max - o.A_min) * random.uniform(i)); };
}

// Ranks that share one group of B and C: more than one if there are fewer groups than ranks.
int64_t replicas_of(const Mamba2Options& o, const Mesh& mesh) {
  const int64_t ranks = mesh.tensor.size();
  check(o.heads() % ranks == 0 && (o.groups % ranks == 0 || ranks % o.groups == 0),
        "Mamba2: {} heads and {} groups cannot be cut over {} ranks", o.heads(), o.groups, ranks);
  return std::max<int64_t>(1, ranks / o.groups);
}

const Mamba2Options& valid(const Mamba2Options& o) {
  o.validate();
  return o;
}

}  // namespace

void Mamba2Options::validate() const {
  check(d_model > 0 && d_state > 0 && d_conv > 0 && expand > 0 && head_dim > 0 && groups > 0,
        "Mamba2: d_model {}, d_state {}, d_conv {}, expand {}, head_dim {} and groups {} must be positive", d_model,
        d_state, d_conv, expand, head_dim, groups);
  check(ssm() <= d_inner(), "Mamba2: d_ssm {} is more than d_inner {}", ssm(), d_inner());
  check(ssm() % head_dim == 0, "Mamba2: {} channels cannot be cut into heads of {}", ssm(), head_dim);
  check(heads() % groups == 0, "Mamba2: {} heads cannot share {} groups", heads(), groups);
  check(norm_groups >= 0 && ssm() % (norm_groups ? norm_groups : groups) == 0,
        "Mamba2: {} channels cannot be normalised in {} groups", ssm(), norm_groups ? norm_groups : groups);
  check(A_min > 0 && A_max >= A_min, "Mamba2: A_min {} and A_max {} must be positive and in order", A_min, A_max);
  check(dt_init_min > 0 && dt_init_max >= dt_init_min,
        "Mamba2: dt_init_min {} and dt_init_max {} must be positive and in order", dt_init_min, dt_init_max);
}

Mamba2::Mamba2(Params p, const Mesh& mesh, const Mamba2Options& o)
    : options(valid(o)),
      conv(p / "conv", conv_parts(o, replicas_of(o, mesh)), o.d_conv, o.conv_bias),
      out_proj(p / "out_proj", o.d_inner(), o.d_model, {.bias = o.bias, .scale = o.out_scale, .shard_axis = 1}) {
  const double bound = 1 / std::sqrt(static_cast<double>(o.d_model));
  const int64_t replicas = replicas_of(o, mesh);
  const auto rows = in_proj_parts(o, init::uniform(-bound, bound), true, replicas);
  in_proj = (p / "in_proj").create_packed("weight", o.d_model, rows);
  if (o.bias) in_bias = (p / "in_proj").create_packed("bias", 0, in_proj_parts(o, init::constant(0), false, replicas));
  const ParamOptions by_head{.decay = false, .shard_axis = 0};
  A_log = p.create("A_log", {o.heads()}, A_log_init(o), by_head);
  dt_bias = p.create("dt_bias", {o.heads()}, dt_bias_init(o), by_head);
  D = p.create("D", o.D_per_channel ? Shape{o.heads(), o.head_dim} : Shape{o.heads()}, init::constant(1), by_head);
  if (o.rms_norm) norm = (p / "norm").create("weight", {o.ssm()}, init::constant(1), by_head);
}

Tensor Mamba2::operator()(const Tensor& u, const Context& context) const { return run(u, nullptr, context); }

Tensor Mamba2::operator()(const Tensor& u, Mamba2State& state, const Context& context) const {
  return run(u, &state, context);
}

Tensor Mamba2::run(const Tensor& u, Mamba2State* state, const Context& context) const {
  const Mamba2Options& o = options;
  check(u.rank() == 3 && u.size(2) == o.d_model, "Mamba2: u {} is not [batch, time, {}]", to_string(u.shape()),
        o.d_model);
  const int64_t batch = u.size(0), time = u.size(1), bc = o.groups * o.d_state;
  const auto split = parts(apply(Matmul{.x = u, .weight = in_proj, .bias = in_bias}));
  const Tensor &z0 = split[0], &x0 = split[1], &z = split[2], &xBC = split[3], &dt = split[4];
  const Mamba2State before = state ? *state : Mamba2State{};
  const Tensor mixed = state ? conv(xBC, state->conv, context.document) : conv(xBC, context.document);
  const auto inner = apply(Split{.x = mixed, .sizes = {o.ssm(), bc, bc}});
  const Tensor &x = inner[0], &B = inner[1], &C = inner[2];
  const Shape by_head{batch, time, o.heads(), o.head_dim}, by_group{batch, time, o.groups, o.d_state};
  const Ssd scan{.x = x.reshape(by_head), .dt = dt, .A_log = A_log, .B = B.reshape(by_group), .C = C.reshape(by_group),
                 .D = D, .z = o.rms_norm ? Tensor() : z.reshape(by_head), .dt_bias = dt_bias,
                 .initial_state = before.ssm, .document = context.document, .dt_min = o.dt_min, .dt_max = o.dt_max,
                 .chunk = o.chunk, .final_state = state != nullptr};
  const auto [by_heads, last] = apply(scan);
  const Tensor y = by_heads.reshape({batch, time, o.ssm()});
  if (state) state->ssm = last;
  const Tensor n = gated(y, z, z0, x0), out = out_proj(n);
  if (!forgets(context)) return out;
  forget(mixed, [conv = conv, context](const Tensor& t, Tensor from) { return conv(t, from, context.document); }, xBC,
         before.conv);
  if (!n.same_storage(y)) forget(n, [m = *this](const auto&... t) { return m.gated(t...); }, y, z, z0, x0);
  if (context.recompute == Recompute::scan) forget(y, scan);
  return out;
}

// What out_proj reads: norm and the MLP part.
Tensor Mamba2::gated(const Tensor& y, const Tensor& z, const Tensor& z0, const Tensor& x0) const {
  const Mamba2Options& o = options;
  Tensor n = y;
  if (o.rms_norm)
    n = apply(GatedRmsNorm{.y = y, .z = z, .weight = norm, .groups = o.norm_groups ? o.norm_groups : o.groups,
                           .norm_before_gate = o.norm_before_gate, .eps = o.eps});
  if (o.mlp() > 0) n = apply(Concatenate{.parts = {apply(SiluMultiply{.y = x0, .gate = z0}), n}});
  return n;
}

// What in_proj makes: z0, x0, z, [x | B | C], dt.
std::vector<Tensor> Mamba2::parts(const Tensor& projected) const {
  const Mamba2Options& o = options;
  return apply(Split{.x = projected, .sizes = {o.mlp(), o.mlp(), o.ssm(), o.conv_channels(), o.heads()}});
}

// The SSD's step from the parts and what the convolution made of [x | B | C]: [batch, ssm].
Tensor Mamba2::scan_step(const std::vector<Tensor>& parts, const Tensor& mixed, const Mamba2State& state) const {
  const Mamba2Options& o = options;
  const int64_t batch = mixed.size(0), bc = o.groups * o.d_state;
  const auto inner = apply(Split{.x = mixed, .sizes = {o.ssm(), bc, bc}});
  const Shape by_head{batch, o.heads(), o.head_dim}, by_group{batch, o.groups, o.d_state};
  return ssd_step({.x = inner[0].reshape(by_head), .dt = parts[4], .A_log = A_log, .B = inner[1].reshape(by_group),
                   .C = inner[2].reshape(by_group), .D = D, .z = o.rms_norm ? Tensor() : parts[2].reshape(by_head),
                   .dt_bias = dt_bias, .state = state.ssm, .dt_min = o.dt_min, .dt_max = o.dt_max})
      .reshape({batch, o.ssm()});
}

Tensor Mamba2::step(const Tensor& u, const Mamba2State& state) const {
  NoGrad none;
  check(u.rank() == 2 && u.size(1) == options.d_model, "Mamba2: u {} is not [batch, {}]", to_string(u.shape()),
        options.d_model);
  const auto split = parts(apply(Matmul{.x = u, .weight = in_proj, .bias = in_bias}));
  const Tensor y = scan_step(split, conv.step(split[3], state.conv), state);
  return out_proj(gated(y, split[2], split[0], split[1]));
}

std::array<Tensor, 2> Mamba2::step(const RmsNorm& before, const Tensor& x, const Tensor& residual,
                                   const Mamba2State& state) const {
  NoGrad none;
  if constexpr (built_with_cuda) {
    const Mamba2Options& o = options;
    const Mamba2StepIn in{.x = x, .residual = residual, .norm = before.weight, .eps = before.eps, .weight = in_proj,
                          .conv = {.x = {}, .state = state.conv, .weight = conv.weight, .bias = conv.bias},
                          .first = 2 * o.mlp() + o.ssm()};
    if (x.device() == Device::cuda && !in_bias && fits(in)) {
      const Cuda on{compute_stream()};
      const auto [projected, sum] = mamba2_step_in(on, in);
      const auto split = parts(projected);
      const Tensor y = scan_step(split, split[3], state);
      const Mamba2StepOut out{.y = y, .z = split[2], .norm = norm, .eps = o.eps,
                              .norm_before_gate = o.norm_before_gate, .weight = out_proj.weight};
      const int64_t groups = o.norm_groups ? o.norm_groups : o.groups;
      const bool plain = o.rms_norm && o.mlp() == 0 && !out_proj.bias && groups == 1;
      return {plain && fits(out) ? mamba2_step_out(on, out) : out_proj(gated(y, split[2], split[0], split[1])), sum};
    }
  }
  const auto [u, sum] = before(x, residual);
  return {step(u, state), sum};
}

Mamba2State Mamba2::zero_state(int64_t batch) const {
  const Mamba2Options& o = options;
  return {.conv = zeros({batch, o.d_conv - 1, o.conv_channels()}, in_proj.dtype(), in_proj.device()),
          .ssm = zeros({batch, o.heads(), o.head_dim, o.d_state}, A_log.dtype(), A_log.device())};
}

}  // namespace adder::layers
