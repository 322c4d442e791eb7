// How a program ends: the library throws, main turns what was thrown into a sentence and an exit status.
//
//   int main(int argc, char** argv) try {
//     ...
//   } catch (...) {
//     return adder::exit_status();
//   }
//
// The function's try block matters: every object of main is gone, files closed and locks released, before it ends.
#pragma once

#include "adder/core/error.h"

namespace adder {

/// The command line or the config file is wrong. Exit status 2.
struct UsageError : Error {
  using Error::Error;
};

/// Not an error: --help was given. The text goes to standard output, exit status 0.
struct HelpShown {
  std::string text;
};

/// Throws UsageError unless the condition holds.
template <class... Args>
void check_usage(bool condition, Format<std::type_identity_t<Args>...> format, Args&&... args) {
  if (!condition) throw UsageError(fmt::format(format.text, std::forward<Args>(args)...), format.at);
}

/// Inside a catch: prints `error: SENTENCE` to standard error, or the help to standard output; returns 0 for help, 2
/// for UsageError, 1 for everything else. Among several ranks it does not return from an error: the sentence is printed
/// with the rank's number and every rank ends at once, with that status, whatever it is waiting for.
int exit_status() noexcept;

}  // namespace adder
