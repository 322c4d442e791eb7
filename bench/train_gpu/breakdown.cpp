#include "adder/bench/train_gpu/breakdown.h"

#include "adder/bench/train_gpu/families.h"

#include <fmt/format.h>

#include <algorithm>

namespace adder {
namespace {

using Families = std::vector<family::Name>;

// Kernels that serve many operators do not tell where they stand.
constexpr bool tells(family::Name name) {
  constexpr family::Name silent[] = {family::product, family::copies, family::sums, family::elementwise,
                                     family::communication};
  return std::ranges::find(silent, name) == std::end(silent);
}

constexpr bool one_way(family::Name name) { return name == family::ssd_forward || name == family::ssd_backward; }

// Kernels of the SSD that serve both directions prepare a kernel that serves one, or add up what it left.
constexpr void settle_ssd(Families& families) {
  family::Name next, last;
  for (size_t i = families.size(); i-- > 0;) {
    if (families[i] == family::ssd && !next.empty()) families[i] = next;
    if (tells(families[i]) && families[i] != family::ssd) next = one_way(families[i]) ? families[i] : family::Name();
  }
  for (family::Name& name : families) {
    if (name == family::ssd && !last.empty()) name = last;
    if (one_way(name)) last = name;
  }
}

// A product's place shows in the operators before and after it: the head's lie beside the cross-entropy, out_proj's
// beside the gated norm, and all others are in_proj's.
constexpr void settle_products(Families& families, bool plain) {
  Families after(families.size());
  family::Name last;
  for (size_t i = families.size(); i-- > 0;) {
    after[i] = last;
    if (tells(families[i])) last = families[i];
  }
  last = {};
  for (size_t i = 0; i < families.size(); ++i) {
    if (tells(families[i])) last = families[i];
    if (families[i] != family::product) continue;
    const auto beside = [&](family::Name name) { return last == name || after[i] == name; };
    if (beside(family::cross_entropy)) families[i] = family::head;
    else if (!plain) families[i] = family::blocks;
    else if (beside(family::gated_forward) || beside(family::gated_backward)) families[i] = family::out_proj;
    else families[i] = family::in_proj;
  }
}

constexpr Families settled(Families families, bool plain) {
  settle_ssd(families);
  settle_products(families, plain);
  return families;
}

// A step of one layer that recomputes.
static_assert([] {
  namespace f = family;
  Families step{f::embedding_forward, f::norm_forward, f::product, f::conv_forward, f::ssd, f::ssd_forward,
                f::gated_forward, f::product, f::norm_forward, f::copies, f::product, f::cross_entropy, f::product,
                f::product, f::cross_entropy, f::elementwise, f::norm_backward, f::gated_forward, f::product,
                f::product, f::gated_backward, f::sums, f::conv_forward, f::ssd, f::ssd, f::ssd_backward, f::sums,
                f::ssd, f::conv_backward, f::norm_forward, f::product, f::product, f::norm_backward};
  const Families found = settled(step, true);
  for (const size_t i : {2, 30, 31}) step[i] = f::in_proj;
  for (const size_t i : {7, 18, 19}) step[i] = f::out_proj;
  for (const size_t i : {10, 12, 13}) step[i] = f::head;
  for (const size_t i : {23, 24, 27}) step[i] = f::ssd_backward;
  step[4] = f::ssd_forward;
  return found == step;
}());

// The name of a line: a kernel in no family has its own.
std::string line(family::Name name, const Activity& activity) {
  if (!name.empty()) return std::string(name);
  const Origin from = origin_of(activity.kernel);
  return fmt::format("other: {} of {}", from.name, from.file.empty() ? "no file" : from.file);
}

Cost all(const LinearCosts& c) { return c.y + c.dx + c.dw; }

std::string row(std::string_view name, const Share& share, int64_t steps, double step_ms, double floor) {
  const double count = static_cast<double>(steps), ms = share.milliseconds / count;
  return fmt::format("| {} | {:g} | {:.2f} | {:.1f} % | {} | {} |\n", name,
                     static_cast<double>(share.launches) / count, ms, 100 * ms / step_ms,
                     floor > 0 ? fmt::format("{:.2f}", floor) : "", floor > 0 ? fmt::format("{:.2f}", ms / floor) : "");
}

}  // namespace

std::map<std::string, Share> shares(const std::vector<Activity>& activities, bool plain) {
  Families families;
  for (const Activity& a : activities) families.push_back(family_of(a.kernel));
  families = settled(std::move(families), plain);
  std::map<std::string, Share> result;
  int64_t busy_until = 0;
  for (size_t i = 0; i < activities.size(); ++i) {
    const int64_t begin = std::max(activities[i].begin, busy_until);
    Share& share = result[line(families[i], activities[i])];
    ++share.launches;
    share.milliseconds += static_cast<double>(std::max<int64_t>(0, activities[i].end - begin)) / 1e6;
    busy_until = std::max(busy_until, activities[i].end);
  }
  return result;
}

std::map<std::string_view, Cost> step_costs(const layers::LanguageModelOptions& model, const StepSizes& step) {
  const layers::Mamba2Options& m = model.mixer;
  const double each = step.bf16 ? 2 : 4, t = step.tokens, layers = static_cast<double>(model.layers);
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  const double d = real(m.d_model), ssm = real(m.ssm()), mlp = real(model.d_intermediate), V = real(model.table_rows());
  const double in = real(2 * m.mlp() + m.ssm() + m.conv_channels() + m.heads());
  const Cost in_proj = layers * all(linear_costs(t, d, in, each));
  const Cost out_proj = layers * all(linear_costs(t, real(m.d_inner()), d, each));
  const Cost mlps =
      (mlp > 0 ? layers : 0) * (all(linear_costs(t, d, 2 * mlp, each)) + all(linear_costs(t, mlp, d, each)));
  const Costs ssd = ssd_costs({.tokens = t, .heads = real(m.heads()), .head_dim = real(m.head_dim),
                               .state = real(m.d_state), .groups = real(m.groups)}, each);
  const Costs conv = conv_costs(t * real(m.conv_channels()), each), gated = gated_norm_costs(t * ssm, each);
  const Costs norm = norm_costs(t * d, each), embedding = embedding_costs(t * d, V * d, each);
  const double gates = m.rms_norm ? layers : 0, norms = layers * (mlp > 0 ? 2 : 1) + 1;
  return {{family::in_proj, in_proj},
          {family::out_proj, out_proj},
          {family::blocks, in_proj + out_proj + mlps},
          {family::head, all(linear_costs(t, d, V, each))},
          {family::ssd_forward, layers * ssd.forward},
          {family::ssd_backward, layers * ssd.backward},
          {family::conv_forward, layers * conv.forward},
          {family::conv_backward, layers * conv.backward},
          {family::norm_forward, norms * norm.forward},
          {family::norm_backward, norms * norm.backward},
          {family::gated_forward, gates * gated.forward},
          {family::gated_backward, gates * gated.backward},
          {family::embedding_forward, embedding.forward},
          {family::embedding_backward, embedding.backward},
          // Logits read once, their gradients written.
          {family::cross_entropy, {(4 + each) * t * real(model.vocabulary)}},
          // The norm reads the gradients; the update reads four and writes three numbers and the rounded copy.
          {family::adamw, {step.parameters * (4 + 28 + (step.bf16 ? 2 : 0))}}};
}

std::string breakdown(const Watched& watched, const std::map<std::string_view, Cost>& costs,
                      const std::function<double(const Cost&)>& floor) {
  const auto& [activities, steps, step_ms, plain] = watched;
  std::map<std::string, Share> by_family = shares(activities, plain);
  std::string table = "| work | launches | ms | of the step | floor, ms | time / floor |\n|---|---|---|---|---|---|\n";
  Share all;
  double floors = 0;
  const auto add = [&, steps = steps, step_ms = step_ms](std::string_view name, const Share& share) {
    const auto cost = costs.find(name);
    const double least = cost == costs.end() ? 0 : floor(cost->second);
    table += row(name, share, steps, step_ms, least);
    all.launches += share.launches;
    all.milliseconds += share.milliseconds;
    floors += least;
  };
  for (const family::Name name : family::all)
    if (const auto found = by_family.extract(std::string(name))) add(name, found.mapped());
  for (const auto& [name, share] : by_family) add(name, share);
  const double idle = step_ms - all.milliseconds / static_cast<double>(steps);
  table += fmt::format("| idle | | {:.2f} | {:.1f} % | | |\n", idle, 100 * idle / step_ms);
  all.milliseconds = step_ms * static_cast<double>(steps);
  return table + row("the step", all, steps, step_ms, floors);
}

}  // namespace adder
