#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/data/hugging_face.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

namespace adder::hugging_face {
namespace {

using layers::LanguageModelOptions;
using layers::Mamba2Options;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double authors_eps = 1e-5;   // of every norm; the authors' config has no field for it
constexpr int64_t authors_mlp = 128;   // an MLP's width is rounded up to a multiple of it

// transformers normalises each group of channels by itself from 5.23 on, and before that all channels together.
constexpr std::pair<uint64_t, uint64_t> grouped_since(5, 23);
constexpr const char *ungrouped_version = "5.22.2", *grouped_version = "5.23.0";  // neighbours

// Python writes numbers that JSON has not. They become strings.
std::string quote_numbers(std::string_view text) {
  std::string quoted;
  bool inside = false;  // a string
  while (!text.empty()) {
    size_t length = inside && text[0] == '\\' ? std::min<size_t>(2, text.size()) : 1;
    if (text[0] == '"') inside = !inside;
    std::string_view number;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"})
      if (!inside && text.starts_with(word)) number = word;
    if (number.empty()) quoted += text.substr(0, length);
    else quoted += fmt::format("\"{}\"", number), length = number.size();
    text.remove_prefix(length);
  }
  return quoted;
}

/// The fields of an object of config.json. An absent field and null are the fallback.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    check(object_.is_object(), "{} is not a JSON object", where_);
  }

  bool has(const std::string& name) const { return object_.find(name) && !object_.at(name).is_null(); }
  int64_t size(const std::string& name, int64_t fallback, int64_t least = 1) const {
    if (!has(name)) return fallback;
    const Json& value = object_.at(name);
    check(value.is_integer() && value.integer() >= least && value.integer() <= int64_t{1} << 30,
          "{}: {} is {}, not a size", where_, name, value.text());
    return value.integer();
  }
  bool flag(const std::string& name, bool fallback) const {
    if (!has(name)) return fallback;
    check(object_.at(name).is_flag(), "{}: {} is {}, not true or false", where_, name, object_.at(name).text());
    return object_.at(name).flag();
  }
  std::string text(const std::string& name, const std::string& fallback) const {
    if (!has(name)) return fallback;
    check(object_.at(name).is_string(), "{}: {} is {}, not a text", where_, name, object_.at(name).text());
    return object_.at(name).string();
  }
  double number(const std::string& name, double fallback) const {
    return has(name) ? number(name, object_.at(name)) : fallback;
  }
  std::pair<double, double> limits(const std::string& name) const {
    if (!has(name)) return {0, infinity};
    const Json& value = object_.at(name);
    check(value.is_array() && value.values().size() == 2, "{}: {} is {}, not [least, most]", where_, name,
          value.text());
    const std::pair limits(number(name, value.values()[0]), number(name, value.values()[1]));
    check(limits.first <= limits.second, "{}: {} is {}, not in order", where_, name, value.text());
    return limits;
  }
  Fields object(const std::string& name) const {
    static const Json none = Json::object();
    return {has(name) ? object_.at(name) : none, where_ + ": " + name};
  }
  /// Absent, null, or an array or object with nothing in it.
  bool empty(const std::string& name) const {
    return !has(name) || object_.at(name) == Json::array() || object_.at(name) == Json::object();
  }
  /// Throws unless every field has one of these names.
  void only(const std::set<std::string>& names) const {
    for (const auto& [name, value] : object_.fields())
      check(names.contains(name), "{}: {} = {} is not supported", where_, name, value.text());
  }
  const std::string& where() const { return where_; }

 private:
  double number(const std::string& name, const Json& value) const {
    if (value.is_number()) return value.number();
    const Json& special = value.find("__float__") ? value.at("__float__") : value;
    if (special == "Infinity") return infinity;
    if (special == "-Infinity") return -infinity;
    fail("{}: {} has {}, not a number", where_, name, value.text());
  }

  const Json& object_;
  std::string where_;
};

// Whether the transformers that wrote this config.json normalised by groups. A file without version is older than the
// field; 5.23.0rc1 counts as 5.23.
bool wrote_grouped_norm(const Fields& c) {
  const std::string version = c.text("transformers_version", "0.0");
  const char* end = version.data() + version.size();
  uint64_t major = 0, minor = 0;
  const auto [dot, error] = std::from_chars(version.data(), end, major);
  check(error == std::errc() && dot != end && *dot == '.' && std::from_chars(dot + 1, end, minor).ec == std::errc(),
        "{}: transformers_version is \"{}\", not a version such as {}: whether the norm runs over groups is unknown",
        c.where(), version, grouped_version);
  return std::pair(major, minor) >= grouped_since;
}

LanguageModelOptions from_transformers(const Fields& c) {
  const std::string activation = c.text("hidden_act", "silu");
  check(activation == "silu" || activation == "swish", "{}: hidden_act = \"{}\" is not supported, only silu",
        c.where(), activation);
  const auto [dt_min, dt_max] = c.limits("time_step_limit");
  const double eps = c.number("layer_norm_epsilon", 1e-5);
  const int64_t groups = c.size("n_groups", 8);
  const LanguageModelOptions o = {
      .vocabulary = c.size("vocab_size", 32768),
      .pad_vocabulary = 1,
      .layers = c.size("num_hidden_layers", 64),
      .tied = c.flag("tie_word_embeddings", false),
      .eps = eps,
      .mixer = {.d_model = c.size("hidden_size", 4096),
                .d_state = c.size("state_size", 128),
                .d_conv = c.size("conv_kernel", 4),
                .expand = c.size("expand", 2),
                .head_dim = c.size("head_dim", 64),
                .groups = groups,
                .norm_groups = groups == 1 || wrote_grouped_norm(c) ? groups : 1,
                .bias = c.flag("use_bias", false),
                .conv_bias = c.flag("use_conv_bias", true),
                .eps = eps,
                .dt_init_min = c.number("time_step_min", 0.001),
                .dt_init_max = c.number("time_step_max", 0.1),
                .dt_init_floor = c.number("time_step_floor", 1e-4),
                .dt_min = dt_min,
                .dt_max = dt_max,
                .chunk = c.size("chunk_size", 256)}};
  const int64_t heads = c.size("num_heads", 128);
  check(heads * o.mixer.head_dim == o.mixer.d_inner(),
        "{}: num_heads {} x head_dim {} is not expand {} x hidden_size {}", c.where(), heads, o.mixer.head_dim,
        o.mixer.expand, o.mixer.d_model);
  return o;
}

Mamba2Options from_ssm_cfg(const Fields& c, int64_t d_model) {
  c.only({"layer", "d_state", "d_conv", "expand", "headdim", "d_ssm", "ngroups", "A_init_range", "D_has_hdim",
          "rmsnorm", "norm_before_gate", "dt_min", "dt_max", "dt_init_floor", "dt_limit", "bias", "conv_bias",
          "chunk_size", "conv_init", "use_mem_eff_path"});
  const std::string layer = c.text("layer", "Mamba1");
  check(layer == "Mamba2", "{}: layer = \"{}\" is not supported, only Mamba2", c.where(), layer);
  const auto [dt_min, dt_max] = c.limits("dt_limit");
  return {.d_model = d_model,
          .d_state = c.size("d_state", 128),
          .d_conv = c.size("d_conv", 4),
          .expand = c.size("expand", 2),
          .head_dim = c.size("headdim", 64),
          .groups = c.size("ngroups", 1),
          .d_ssm = c.size("d_ssm", 0),
          .rms_norm = c.flag("rmsnorm", true),
          .norm_before_gate = c.flag("norm_before_gate", false),
          .D_per_channel = c.flag("D_has_hdim", false),
          .bias = c.flag("bias", false),
          .conv_bias = c.flag("conv_bias", true),
          .eps = authors_eps,
          .dt_init_min = c.number("dt_min", 0.001),
          .dt_init_max = c.number("dt_max", 0.1),
          .dt_init_floor = c.number("dt_init_floor", 1e-4),
          .dt_min = dt_min,
          .dt_max = dt_max,
          .chunk = c.size("chunk_size", 256)};
}

LanguageModelOptions from_state_spaces(const Fields& c) {
  c.only({"d_model", "d_intermediate", "n_layer", "vocab_size", "ssm_cfg", "attn_layer_idx", "attn_cfg", "rms_norm",
          "residual_in_fp32", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings"});
  check(c.empty("attn_layer_idx"), "{}: attn_layer_idx names layers of attention, which are not supported", c.where());
  check(c.flag("rms_norm", true), "{}: rms_norm = false is not supported", c.where());
  const int64_t width = c.size("d_intermediate", 0, 0);
  return {.vocabulary = c.size("vocab_size", 50277),
          .pad_vocabulary = c.size("pad_vocab_size_multiple", 8),
          .layers = c.size("n_layer", 64),
          .d_intermediate = (width + authors_mlp - 1) / authors_mlp * authors_mlp,
          .tied = c.flag("tie_embeddings", true),
          .eps = authors_eps,
          .mixer = from_ssm_cfg(c.object("ssm_cfg"), c.size("d_model", 2560))};
}

void refuse(const char* form, bool possible, const std::string& what) {
  check(possible, "a {} config.json cannot say {}", form, what);
}

// What no field says: the norm's groups are those of B and C.
void check_norm_groups(const char* form, const Mamba2Options& m) {
  refuse(form, !m.rms_norm || m.norm_groups == 0 || m.norm_groups == m.groups,
         fmt::format("norm_groups {} with groups {}", m.norm_groups, m.groups));
}

Json transformers_config(const LanguageModelOptions& o) {
  const Mamba2Options& m = o.mixer;
  const char* form = "transformers";
  const bool ungrouped = m.norm_groups == 1 && m.groups > 1;
  if (!ungrouped) check_norm_groups(form, m);
  refuse(form, m.mlp() == 0, fmt::format("d_ssm {} of {} channels", m.ssm(), m.d_inner()));
  refuse(form, o.d_intermediate == 0, fmt::format("d_intermediate {}", o.d_intermediate));
  refuse(form, m.rms_norm && !m.norm_before_gate, "rms_norm = false or norm_before_gate = true");
  refuse(form, !m.D_per_channel, "D_per_channel = true");
  refuse(form, o.eps == m.eps, fmt::format("eps {} here and {} in the mixer", o.eps, m.eps));
  Json c = Json::object(
           {{"architectures", Json::array({"Mamba2ForCausalLM"})}, {"model_type", "mamba2"},
            {"transformers_version", ungrouped ? ungrouped_version : grouped_version}, {"dtype", "float32"},
            {"torch_dtype", "float32"}, {"hidden_act", "silu"}, {"residual_in_fp32", true},
            {"vocab_size", o.vocabulary}, {"num_hidden_layers", o.layers}, {"tie_word_embeddings", o.tied},
            {"layer_norm_epsilon", o.eps}, {"hidden_size", m.d_model}, {"state_size", m.d_state},
            {"conv_kernel", m.d_conv}, {"expand", m.expand}, {"head_dim", m.head_dim}, {"num_heads", m.heads()},
            {"n_groups", m.groups}, {"use_bias", m.bias}, {"use_conv_bias", m.conv_bias},
            {"time_step_min", m.dt_init_min}, {"time_step_max", m.dt_init_max}, {"time_step_floor", m.dt_init_floor},
            {"bos_token_id", {}}, {"eos_token_id", {}}, {"pad_token_id", {}}});
  if (m.chunk > 0) c["chunk_size"] = m.chunk;
  return c;
}

Json state_spaces_config(const LanguageModelOptions& o) {
  const Mamba2Options& m = o.mixer;
  const char* form = "state-spaces";
  check_norm_groups(form, m);
  refuse(form, o.eps == authors_eps && m.eps == authors_eps,
         fmt::format("eps {} or {}, only {}", o.eps, m.eps, authors_eps));
  refuse(form, o.d_intermediate % authors_mlp == 0,
         fmt::format("d_intermediate {}, which it would round up to {}", o.d_intermediate, authors_mlp));
  Json ssm = Json::object(
             {{"layer", "Mamba2"}, {"d_state", m.d_state}, {"d_conv", m.d_conv}, {"expand", m.expand},
              {"headdim", m.head_dim}, {"ngroups", m.groups}, {"D_has_hdim", m.D_per_channel}, {"rmsnorm", m.rms_norm},
              {"norm_before_gate", m.norm_before_gate}, {"dt_min", m.dt_init_min}, {"dt_max", m.dt_init_max},
              {"dt_init_floor", m.dt_init_floor}, {"bias", m.bias}, {"conv_bias", m.conv_bias}});
  if (m.mlp() > 0) ssm["d_ssm"] = m.ssm();
  if (m.chunk > 0) ssm["chunk_size"] = m.chunk;
  return Json::object(
         {{"d_model", m.d_model}, {"d_intermediate", o.d_intermediate}, {"n_layer", o.layers},
          {"vocab_size", o.vocabulary}, {"ssm_cfg", ssm}, {"attn_layer_idx", Json::array()},
          {"attn_cfg", Json::object()}, {"rms_norm", true}, {"residual_in_fp32", true}, {"fused_add_norm", true},
          {"pad_vocab_size_multiple", o.pad_vocabulary}, {"tie_embeddings", o.tied}});
}

Json bound(double value) {
  if (value == infinity) return "Infinity";
  return value;
}

}  // namespace

std::string config(const LanguageModelOptions& o, Form form) {
  o.validate();
  const bool transformers = form == Form::transformers;
  Json c = transformers ? transformers_config(o) : state_spaces_config(o);
  const bool limited = o.mixer.dt_min != 0 || o.mixer.dt_max != infinity;
  if (limited)
    (transformers ? c["time_step_limit"] : c["ssm_cfg"]["dt_limit"]) =
        Json::array({bound(o.mixer.dt_min), bound(o.mixer.dt_max)});
  std::string text = c.text(2) + "\n";
  const std::string quoted = "\"Infinity\"";  // as Python writes it
  if (const auto at = text.find(quoted); at != std::string::npos) text.replace(at, quoted.size(), "Infinity");
  return text;
}

LanguageModelOptions parse_config(const std::string& text, const std::string& where) {
  Json object;
  try {
    object = Json::parse(quote_numbers(text));
  } catch (const Error& error) {
    fail("{}: malformed ({})", where, error.what());
  }
  const Fields c(object, where);
  const std::string type = c.text("model_type", c.has("ssm_cfg") || c.has("d_model") ? "" : "none");
  check(type.empty() || type == "mamba2", "{}: the model_type is {}, not mamba2", where, type);
  const LanguageModelOptions o = type.empty() ? from_state_spaces(c) : from_transformers(c);
  try {
    o.validate();
  } catch (const Error& error) {
    fail("{}: {}", where, error.what());
  }
  return o;
}

}  // namespace adder::hugging_face
