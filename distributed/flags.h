// Flags: the command line of a program, bound to its options.
//
//   struct Options { int64_t steps = 4'800; std::string schedule = "cosine"; bool tied = true; };
//
//   Flags flags(Options& o) {
//     Flags flags("Trains a language model on your text.", "train --steps 2000 --text ~/notes");
//     flags.group("Training");
//     flags.add("steps", o.steps, "optimizer steps", {.min = 1, .may_change = true});
//     flags.add("schedule", o.schedule, "how the learning rate falls", {.choices = {"cosine", "linear"}});
//     flags.add("tied", o.tied, "share the embedding with the output layer");
//     return flags;
//   }
//
// What an option holds when it is added is its default. On the command line a value follows its flag (--steps 100 or
// --steps=100; a list takes several), a yes/no flag stands alone (--tied, --no-tied, --tied=false), and of a flag given
// twice the last one counts. `--config FILE` reads the same names from a TOML or INI file (sections are ignored: they
// are for the reader); the command line overrides it. `--help` throws HelpShown before anything is assigned.
#pragma once

#include "adder/distributed/program.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace adder {

/// What a flag's values must satisfy.
struct FlagRules {
  std::optional<double> min = {}, max = {};   // numbers: both inclusive
  std::vector<std::string> choices = {};      // strings: one of these
  bool required = false;                      // must be given
  bool may_change = false;                    // a resumed run may have another value: it changes rounding at most
  std::function<void()> preset = {};          // called when it is given: gives other options their defaults; those
                                              // given in the same place, file or command line, are assigned after it
  std::string on_gpu = {};                    // another default, as one would write it, for runs on a GPU; empty: none
};

/// A flag whose value is not that of the saved run.
struct FlagDifference {
  std::string name, saved, now;
};

using FlagValue = std::variant<int64_t, double, bool, std::string, std::vector<std::string>>;

class Flags {
 public:
  /// `about`: what the program does, the first paragraph of its help. `example`: a command line worth trying.
  explicit Flags(std::string about, std::string example = "");

  /// The heading under which the flags that follow stand in the help.
  void group(std::string name) { group_ = std::move(name); }
  /// Binds a flag to an option of type int64_t, double, bool, std::string or std::vector<std::string>, which must stay
  /// where it is until parse() has returned.
  template <class T>
  void add(std::string name, T& option, std::string help, FlagRules rules = {}) {
    add(Flag{std::move(name), group_, std::move(help), std::move(rules), &option, option});
  }

  /// Assigns the options. Throws UsageError with one sentence that names the flag, or HelpShown.
  void parse(int argc, const char* const* argv);
  /// Gives flags the defaults that they have on a GPU; after parse(), whose values are then assigned once more.
  void use_gpu_defaults();
  bool have_gpu_defaults() const;
  /// The help ends with what a run may have other values of when it goes on.
  void runs_go_on() { runs_go_on_ = true; }
  /// Whether it was on the command line or in the config file.
  bool given(std::string_view name) const;
  /// What --help shows: `width` columns wide, `program` is argv[0].
  std::string help(std::string_view program, size_t width = 100) const;

  /// All values by name: {"steps":4800,"schedule":"cosine","tied":true}. Numbers that are not finite become strings.
  std::string to_json() const;
  /// The flags whose value is not the saved one: of those that may not change, or of those that may. A flag that was
  /// not saved counts as saved with its default; saved names that are no flags any more are ignored.
  std::vector<FlagDifference> differences(std::string_view saved_json, bool may_change = false) const;

 private:
  using Target = std::variant<int64_t*, double*, bool*, std::string*, std::vector<std::string>*>;
  struct Flag {
    std::string name, group, help;
    FlagRules rules;
    Target target;
    FlagValue initial;
    bool given = false;
    bool is_yes_no() const { return std::holds_alternative<bool*>(target); }
    bool is_list() const { return std::holds_alternative<std::vector<std::string>*>(target); }
    FlagValue value() const;
  };
  struct Given {
    size_t flag;                      // in flags_
    std::string where;                // "--steps" or "small.toml: steps"
    std::vector<std::string> values;
  };

  void add(Flag flag);
  const Flag* find(std::string_view name) const;
  void refuse_unknown(std::string_view where, std::string_view name) const;  // throws, suggesting the nearest name
  std::vector<Given> read_config(const std::string& path) const;
  void assign(const std::vector<Given>& from_one_place);
  static void assign(const Flag& flag, const Given& given);
  static std::string describe(const Flag& flag);

  std::string about_, example_, group_ = "Flags";
  bool runs_go_on_ = false;
  std::vector<Flag> flags_;
  std::vector<std::vector<Given>> places_;  // what was given in the config file, and on the command line
};

/// How many single-letter changes (insert, delete, replace) lead from one word to the other.
size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace adder
