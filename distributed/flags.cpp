#include "adder/distributed/flags.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <numeric>
#include <utility>

namespace adder {
namespace {

// A whole word as a number; nothing if there is more or less than that in it.
template <class T>
std::optional<T> number(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

std::optional<bool> yes_or_no(std::string_view text) {
  for (const char* yes : {"true", "yes", "on", "1"})
    if (text == yes) return true;
  for (const char* no : {"false", "no", "off", "0"})
    if (text == no) return false;
  return {};
}

// joined({"a", "b", "c"}, ", ", " or ") is "a, b or c".
std::string joined(const std::vector<std::string>& words, const char* between, const char* last) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) text += (i == 0 ? "" : i + 1 < words.size() ? between : last) + words[i];
  return text;
}

std::string to_text(const FlagValue& value) {
  struct {
    std::string operator()(bool x) { return x ? "yes" : "no"; }
    std::string operator()(const std::vector<std::string>& x) { return joined(x, " ", " "); }
    std::string operator()(const std::string& x) { return x; }
    std::string operator()(int64_t x) { return fmt::format("{}", x); }
    std::string operator()(double x) { return fmt::format("{}", x); }
  } text;
  return std::visit(text, value);
}

std::string range(const FlagRules& rules) {
  if (rules.min && rules.max) return fmt::format("from {} to {}", *rules.min, *rules.max);
  if (rules.min) return fmt::format("at least {}", *rules.min);
  if (rules.max) return fmt::format("at most {}", *rules.max);
  return "";
}

// Appends words to `text`, breaking lines before `width` and starting each new one at `indent`.
void append_wrapped(std::string& text, std::string_view words, size_t indent, size_t width) {
  const size_t newline = text.rfind('\n');
  size_t column = text.size() - (newline == std::string::npos ? 0 : newline + 1);
  bool first = true;
  for (size_t begin = 0; begin < words.size();) {
    const size_t end = std::min(words.find(' ', begin), words.size());
    const std::string_view word = words.substr(begin, end - begin);
    begin = end + 1;
    if (word.empty()) continue;
    if (!first && column + 1 + word.size() > width) {
      text += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (!first) {
      text += ' ';
      ++column;
    }
    text += word;
    column += word.size();
    first = false;
  }
  text += '\n';
}

}  // namespace

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j)
      diagonal = std::exchange(row[j + 1], std::min({row[j + 1] + 1, row[j] + 1, diagonal + (a[i] != b[j])}));
  }
  return row.back();
}

Flags::Flags(std::string about, std::string example) : about_(std::move(about)), example_(std::move(example)) {}

void Flags::add(Flag flag) {
  check(find(flag.name) == nullptr && flag.name != "help" && flag.name != "config", "flag --{} is added twice",
        flag.name);
  flags_.push_back(std::move(flag));
}

FlagValue Flags::Flag::value() const {
  return std::visit([](auto* option) { return FlagValue(*option); }, target);
}

const Flags::Flag* Flags::find(std::string_view name) const {
  const auto found = std::find_if(flags_.begin(), flags_.end(), [&](const Flag& flag) { return flag.name == name; });
  return found == flags_.end() ? nullptr : &*found;
}

void Flags::refuse_unknown(std::string_view where, std::string_view name) const {
  std::vector<std::string> names{"help", "config"};
  for (const Flag& flag : flags_) {
    names.push_back(flag.name);
    if (flag.is_yes_no()) names.push_back("no-" + flag.name);
  }
  const auto distance = [&](const std::string& other) {  // a part of a name is as near as one wrong letter
    return other.starts_with(name) ? std::min<size_t>(1, edit_distance(name, other)) : edit_distance(name, other);
  };
  const std::string& nearest = *std::min_element(
      names.begin(), names.end(), [&](const auto& a, const auto& b) { return distance(a) < distance(b); });
  const std::string hint = distance(nearest) <= (name.size() < 4 ? 1 : std::max<size_t>(2, name.size() / 3))
                               ? fmt::format("did you mean --{}?", nearest)
                               : "--help lists them all";
  check_usage(false, "{}: there is no such flag; {}", where, hint);
}

void Flags::parse(int argc, const char* const* argv) {
  // CLI11 would take a value "[a, b]" of a list apart, were its bracket the last letter. No argument has a letter 0.
  const std::string guard(1, '\0');
  std::vector<std::string> words;  // the last one first
  for (int i = argc - 1; i >= 1; --i) words.push_back(std::string(argv[i]).ends_with(']') ? argv[i] + guard : argv[i]);
  const auto bare = [](std::vector<std::string> list) {
    for (std::string& word : list)
      if (word.ends_with('\0')) word.pop_back();
    return list;
  };
  CLI::App app;
  app.set_help_flag("");
  app.allow_extras();
  CLI::Option* help_flag = app.add_flag("-h,--help");
  CLI::Option* config = app.add_option("--config")->take_last();
  std::vector<CLI::Option*> options;
  for (const Flag& flag : flags_) {
    options.push_back(flag.is_yes_no() ? app.add_flag(fmt::format("--{0},!--no-{0}", flag.name))->take_last()
                                       : app.add_option("--" + flag.name)->take_last());
    if (flag.is_list()) options.back()->expected(-1)->take_all();
  }
  try {
    app.parse(std::move(words));
  } catch (const CLI::ArgumentMismatch& error) {  // its text starts with the flag
    const std::string_view text = error.what();
    check_usage(false, "{} needs a value", text.substr(0, text.find(':')));
  } catch (const CLI::ParseError& error) {
    check_usage(false, "{}", error.what());
  }
  if (help_flag->count() > 0) throw HelpShown{help(argc > 0 ? argv[0] : "")};
  for (const std::string& extra : bare(app.remaining())) {
    const std::string_view dashed = std::string_view(extra).substr(0, extra.find('='));
    check_usage(dashed.starts_with('-'), "\"{}\" stands alone: values follow a flag that takes one, and a yes/no flag "
                "is written --flag or --no-flag", extra);
    refuse_unknown(dashed, dashed.substr(std::min(dashed.find_first_not_of('-'), dashed.size())));
  }

  places_.clear();
  if (config->count() > 0) places_.push_back(read_config(bare(config->results()).back()));
  std::vector<Given> here;
  for (size_t i = 0; i < flags_.size(); ++i)
    if (options[i]->count() > 0) here.push_back({i, "--" + flags_[i].name, bare(options[i]->results())});
  places_.push_back(std::move(here));
  for (const auto& place : places_) assign(place);
  for (const Flag& flag : flags_)
    check_usage(flag.given || !flag.rules.required, "--{} must be given: {}", flag.name, flag.help);
}

bool Flags::have_gpu_defaults() const {
  return std::any_of(flags_.begin(), flags_.end(), [](const Flag& flag) { return !flag.rules.on_gpu.empty(); });
}

void Flags::use_gpu_defaults() {
  std::vector<bool> given;
  for (const Flag& flag : flags_) given.push_back(flag.given);
  std::vector<Given> defaults;
  for (size_t i = 0; i < flags_.size(); ++i)
    if (const std::string& text = flags_[i].rules.on_gpu; !text.empty())
      defaults.push_back({i, "--" + flags_[i].name, {text}});
  assign(defaults);
  for (const auto& place : places_) assign(place);
  for (size_t i = 0; i < flags_.size(); ++i) flags_[i].given = given[i];
}

bool Flags::given(std::string_view name) const {
  const Flag* const flag = find(name);
  check(flag != nullptr, "there is no flag --{}", name);
  return flag->given;
}

void Flags::assign(const std::vector<Given>& from_one_place) {
  for (const bool presets : {true, false})
    for (const Given& g : from_one_place) {
      Flag& flag = flags_[g.flag];
      if (static_cast<bool>(flag.rules.preset) != presets) continue;
      assign(flag, g);
      if (presets) flag.rules.preset();
      flag.given = true;
    }
}

std::vector<Flags::Given> Flags::read_config(const std::string& path) const {
  check_usage(std::filesystem::is_regular_file(path), "--config: {} is not a file", path);
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigTOML().from_file(path);
  } catch (const CLI::Error& error) {
    check_usage(false, "{}: {}", path, error.what());
  }
  std::vector<Given> given;
  for (const CLI::ConfigItem& item : items) {
    if (item.name == "++" || item.name == "--") continue;  // a section begins or ends
    const std::string where = fmt::format("{}: {}", path, item.name);
    const Flag* flag = find(item.name);
    if (flag == nullptr) refuse_unknown(where, item.name);
    given.push_back({static_cast<size_t>(flag - flags_.data()), where, item.inputs});
  }
  return given;
}

void Flags::assign(const Flag& flag, const Given& given) {
  const std::string& where = given.where;
  if (auto* const* list = std::get_if<std::vector<std::string>*>(&flag.target)) {
    **list = given.values;
    return;
  }
  check_usage(!given.values.empty(), "{} needs a value", where);
  const std::string& text = given.values.back();
  const auto in_range = [&](auto value) {
    const FlagRules& rules = flag.rules;
    const bool good = (!rules.min || value >= *rules.min) && (!rules.max || value <= *rules.max);
    check_usage(good, "{} is {}, but must be {}", where, text, range(rules));
    return value;
  };
  if (auto* const* whole = std::get_if<int64_t*>(&flag.target)) {
    const auto value = number<int64_t>(text);
    check_usage(value.has_value(), "{} is \"{}\", which is not a whole number", where, text);
    **whole = in_range(*value);
  } else if (auto* const* real = std::get_if<double*>(&flag.target)) {
    const auto value = number<double>(text);
    check_usage(value.has_value() && *value == *value, "{} is \"{}\", which is not a number", where, text);
    **real = in_range(*value);
  } else if (auto* const* answer = std::get_if<bool*>(&flag.target)) {
    const auto value = yes_or_no(text);
    check_usage(value.has_value(), "{} is \"{}\", which is neither true nor false", where, text);
    **answer = *value;
  } else {
    const auto& choices = flag.rules.choices;
    check_usage(choices.empty() || std::find(choices.begin(), choices.end(), text) != choices.end(),
                "{} is \"{}\", but must be {}", where, text, joined(choices, ", ", " or "));
    *std::get<std::string*>(flag.target) = text;
  }
}

// "optimizer steps (default 4800, at least 1)"
std::string Flags::describe(const Flag& flag) {
  std::vector<std::string> notes;
  if (const std::string initial = to_text(flag.initial); flag.rules.required) notes.push_back("required");
  else if (!initial.empty()) notes.push_back("default " + initial);
  if (!flag.rules.on_gpu.empty()) notes.push_back("on a GPU " + flag.rules.on_gpu);
  if (flag.rules.choices.size() > 1) notes.push_back("one of " + joined(flag.rules.choices, ", ", " or "));
  if (const std::string limits = range(flag.rules); !limits.empty()) notes.push_back(limits);
  return notes.empty() ? flag.help : fmt::format("{} ({})", flag.help, joined(notes, ", ", ", "));
}

std::string Flags::help(std::string_view program, size_t width) const {
  constexpr size_t indent = 26;
  static constexpr const char* values[] = {" N", " X", "", " TEXT", " TEXT..."};  // in the order of Target
  std::string text;
  append_wrapped(text, about_, 0, width);
  text += fmt::format("\nusage: {} [flags]\n", std::filesystem::path(program).filename().string());
  if (!example_.empty()) text += fmt::format("example: {}\n", example_);
  const auto line = [&](std::string left, std::string_view right) {
    left.insert(0, "  ");
    text += left;
    text += left.size() + 2 > indent ? "\n" + std::string(indent, ' ') : std::string(indent - left.size(), ' ');
    append_wrapped(text, right, indent, width);
  };
  std::vector<std::string> groups, changeable;
  for (const Flag& flag : flags_) {
    if (std::find(groups.begin(), groups.end(), flag.group) == groups.end()) groups.push_back(flag.group);
    if (flag.rules.may_change) changeable.push_back("--" + flag.name);
  }
  for (const std::string& group : groups) {
    text += fmt::format("\n{}\n", group);
    for (const Flag& flag : flags_)
      if (flag.group == group)
        line(flag.is_yes_no() ? fmt::format("--{0}, --no-{0}", flag.name)
                              : fmt::format("--{}{}", flag.name, values[flag.target.index()]),
             describe(flag));
  }
  text += "\nHelp\n";
  line("--config FILE", "read flags from a TOML or INI file (steps = 100); those given here override it");
  line("--help, -h", "show this text and do nothing");
  if (!runs_go_on_ || changeable.empty()) return text;
  text += '\n';
  append_wrapped(text, fmt::format("A run that was stopped goes on when the same command is given again. It may then "
                                   "have other values of {}; every other flag is part of the run.",
                                   joined(changeable, ", ", " and ")), 0, width);
  return text;
}

}  // namespace adder
