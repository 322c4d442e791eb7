// Flags as JSON: what run.json and checkpoints say about a run, and what of it has changed since.
#include "adder/distributed/flags.h"

#include <nlohmann/json.hpp>

#include <cmath>

namespace adder {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const FlagValue& value) {
  return std::visit([](const auto& x) -> Json {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(x)>, double>)
      if (!std::isfinite(x)) return x > 0 ? "Infinity" : "-Infinity";
    return x;
  }, value);
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// A value as one would write it on the command line.
std::string to_text(const Json& json) {
  if (json.is_string()) return json.get<std::string>();
  return dump(json);
}

}  // namespace

std::string Flags::to_json() const {
  Json json = Json::object();
  for (const Flag& flag : flags_) json[flag.name] = adder::to_json(flag.value());
  return dump(json);
}

std::vector<FlagDifference> Flags::differences(std::string_view saved_json, bool may_change) const {
  const Json saved = Json::parse(saved_json, nullptr, false);
  check(saved.is_object(), "the saved flags are not a JSON object");
  std::vector<FlagDifference> found;
  for (const Flag& flag : flags_) {
    if (flag.rules.may_change != may_change) continue;
    const Json now = adder::to_json(flag.value());
    const Json before = saved.contains(flag.name) ? saved.at(flag.name) : adder::to_json(flag.initial);
    if (now != before) found.push_back({flag.name, to_text(before), to_text(now)});
  }
  return found;
}

}  // namespace adder
