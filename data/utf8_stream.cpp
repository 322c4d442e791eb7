#include "adder/data/utf8_stream.h"

#include <utility>

namespace adder {
namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

std::string Utf8Stream::add(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (!pending_.empty() && low_ <= byte && byte <= high_) {
      pending_ += c;
      low_ = 0x80, high_ = 0xBF;
      if (pending_.size() == length_) text += std::exchange(pending_, {});
      continue;
    }
    text += finish();
    begin(byte, text);
  }
  return text;
}

std::string Utf8Stream::finish() { return std::string(std::exchange(pending_, {}).empty() ? "" : replacement); }

// A first byte. The range of the second one keeps out overlong forms, surrogates and what lies above U+10FFFF.
void Utf8Stream::begin(unsigned char byte, std::string& text) {
  length_ = byte < 0x80 ? 1 : byte < 0xC2 ? 0 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : byte < 0xF5 ? 4 : 0;
  low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
  high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
  if (length_ == 0) text += replacement;
  else if (length_ == 1) text += static_cast<char>(byte);
  else pending_ = static_cast<char>(byte);
}

}  // namespace adder
