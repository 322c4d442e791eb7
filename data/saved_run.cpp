#include "adder/data/saved_run.h"

#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/data/checkpoint_layout.h"
#include "adder/layers/language_model_flags.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

namespace adder {

namespace fs = std::filesystem;

void SavedRun::assign(Flags& to) const {
  std::vector<std::string> words = {"run.json"};
  for (const FlagDifference& d : to.differences(flags)) {
    words.push_back("--" + d.name);
    if (d.saved.empty()) words.push_back("");  // "--name=" would be a flag without a value
    else words.back() += "=" + d.saved;
  }
  std::vector<const char*> line;
  for (const std::string& word : words) line.push_back(word.c_str());
  try {
    to.parse(static_cast<int>(line.size()), line.data());
  } catch (const UsageError& error) {
    fail("{}/run.json: is damaged, {}", folder, error.what());
  }
}

SavedRun saved_run(const std::string& folder) {
  check(fs::is_directory(folder), "{}: there is no such run folder", folder);
  const std::string path = folder + "/run.json";
  std::ifstream file(path);
  check(file.is_open(), "{}: is no run folder, it holds no run.json", folder);
  const Json json = Json::parse_or_null(std::string(std::istreambuf_iterator<char>(file), {}));
  const Json *recipe = json.find("recipe"), *options = json.find("options");
  check(recipe && recipe->is_string() && options && options->is_object(),
        "{}: is damaged, it should hold a recipe and its options", path);
  check(!layout::steps(layout::folder(folder)).empty(), "{}: the run has no checkpoint yet", folder);
  return {folder, recipe->string(), options->text()};
}

layers::LanguageModelOptions model_options(const SavedRun& run) {
  layers::LanguageModelOptions o;
  Flags flags("");
  add_flags(flags, o);
  run.assign(flags);
  return o;
}

std::optional<std::string> newest_run(const std::string& runs) {
  std::optional<std::pair<fs::file_time_type, std::string>> newest;
  for (const std::string& name : layout::entries(runs)) {
    const std::string run = runs + "/" + name, checkpoints = layout::folder(run);
    if (!fs::exists(run + "/run.json")) continue;
    for (const int64_t step : layout::steps(checkpoints)) {
      std::error_code gone;  // deleted meanwhile by the run that goes on
      const auto time = fs::last_write_time(layout::manifest(layout::checkpoint(checkpoints, step)), gone);
      if (!gone && (!newest || *newest < std::pair(time, run))) newest.emplace(time, run);
    }
  }
  return newest ? std::optional(newest->second) : std::nullopt;
}

}  // namespace adder
