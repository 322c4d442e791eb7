// Utf8Stream: bytes that arrive one by one, as text that can be shown at any moment.
#pragma once

#include <string>
#include <string_view>

namespace adder {

/// Whole UTF-8 sequences (RFC 3629) pass as soon as their last byte is there. What cannot become one is shown as
/// U+FFFD, one for each stray byte or longest beginning of a sequence, as in browsers ("substitution of maximal
/// subparts", The Unicode Standard, sec. 3.9). How the bytes are cut into calls makes no difference.
class Utf8Stream {
 public:
  /// The text that is complete with these bytes.
  std::string add(std::string_view bytes);
  /// The end: U+FFFD if a sequence was left unfinished.
  std::string finish();

 private:
  void begin(unsigned char byte, std::string& text);

  std::string pending_ = {};                 // the beginning of a sequence
  size_t length_ = 0;                        // of the sequence that began
  unsigned char low_ = 0x80, high_ = 0xBF;   // what its next byte may be
};

}  // namespace adder
