// Flags as JSON: what run.json and checkpoints say about a run, and what of it has changed since.
#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/distributed/flags.h"

#include <cmath>

namespace adder {
namespace {

Json to_json(const FlagValue& value) {
  return std::visit([](const auto& x) -> Json {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(x)>, double>)
      if (!std::isfinite(x)) return x > 0 ? "Infinity" : "-Infinity";
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(x)>, std::vector<std::string>>)
      return Json::array(Json::Array(x.begin(), x.end()));
    else return x;
  }, value);
}

// A value as one would write it on the command line.
std::string to_text(const Json& json) { return json.is_string() ? json.string() : json.text(); }

}  // namespace

std::string Flags::to_json() const {
  Json json = Json::object();
  for (const Flag& flag : flags_) json[flag.name] = adder::to_json(flag.value());
  return json.text();
}

std::vector<FlagDifference> Flags::differences(std::string_view saved_json, bool may_change) const {
  const Json saved = Json::parse_or_null(saved_json);
  check(saved.is_object(), "the saved flags are not a JSON object");
  std::vector<FlagDifference> found;
  for (const Flag& flag : flags_) {
    if (flag.rules.may_change != may_change) continue;
    const Json now = adder::to_json(flag.value());
    const Json* const found_before = saved.find(flag.name);
    const Json before = found_before ? *found_before : adder::to_json(flag.initial);
    if (now != before) found.push_back({flag.name, to_text(before), to_text(now)});
  }
  return found;
}

}  // namespace adder
