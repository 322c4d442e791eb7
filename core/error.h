// Errors: one exception type, one sentence with the numbers in it.
#pragma once

#include <fmt/core.h>

#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace adder {

/// What everything in adder throws. what() is one sentence for the user; where() is "file:line" of the check.
class Error : public std::runtime_error {
 public:
  Error(const std::string& sentence, std::source_location at);
  const std::string& where() const { return where_; }

 private:
  std::string where_;
};

/// A format string, checked against its arguments at compile time, that remembers where it stands.
template <class... Args>
struct Format {
  template <class String>
  consteval Format(const String& text_, std::source_location at_ = std::source_location::current())
      : text(text_), at(at_) {}
  fmt::format_string<Args...> text;
  std::source_location at;
};

/// Throws Error with the formatted sentence: fail("tokens.h5: {} tokens, expected {}", a, b).
template <class... Args>
[[noreturn]] void fail(Format<std::type_identity_t<Args>...> format, Args&&... args) {
  throw Error(fmt::format(format.text, std::forward<Args>(args)...), format.at);
}

/// Throws unless the condition holds: check(a == b, "RmsNorm: x has {} columns but weight has {}", a, b).
template <class... Args>
void check(bool condition, Format<std::type_identity_t<Args>...> format, Args&&... args) {
  if (!condition) [[unlikely]]
    throw Error(fmt::format(format.text, std::forward<Args>(args)...), format.at);
}

}  // namespace adder
