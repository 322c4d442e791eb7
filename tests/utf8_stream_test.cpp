#include "adder/data/utf8_stream.h"

#include "catch.h"

using adder::Utf8Stream;

namespace {

std::string shown(const std::string& bytes) {
  Utf8Stream stream;
  const std::string text = stream.add(bytes);
  return text + stream.finish();
}

const std::string sign = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

TEST_CASE("utf-8 stream: a sequence appears whole with its last byte") {
  for (const std::string letter : {"a", "\xC3\xA9", "\xE2\x82\xAC", "\xED\x9F\xBF", "\xF0\x9F\x90\x8D",
                                   "\xF4\x8F\xBF\xBF"}) {
    Utf8Stream stream;
    for (size_t i = 0; i + 1 < letter.size(); ++i) CHECK(stream.add(letter.substr(i, 1)).empty());
    CHECK(stream.add(letter.substr(letter.size() - 1)) == letter);
    CHECK(stream.finish().empty());
  }
}

TEST_CASE("utf-8 stream: what is not UTF-8 becomes one U+FFFD for each longest beginning of a sequence") {
  CHECK(shown("a\xFFz") == "a" + sign + "z");
  CHECK(shown("\x80\xBF") == sign + sign);                        // continuations of nothing
  CHECK(shown("\xC0\xAF") == sign + sign);                        // overlong
  CHECK(shown("\xE0\x80\xAF") == sign + sign + sign);             // overlong
  CHECK(shown("\xED\xA0\x80") == sign + sign + sign);             // a surrogate
  CHECK(shown("\xF4\x90\x80\x80") == sign + sign + sign + sign);  // above U+10FFFF
  CHECK(shown("\xF5") == sign);
  // The example of The Unicode Standard, sec. 3.9.
  CHECK(shown("a\xF1\x80\x80\xE1\x80\xC2" "b\x80" "c\x80\xBF" "d") ==
        "a" + sign + sign + sign + "b" + sign + "c" + sign + sign + "d");
}

TEST_CASE("utf-8 stream: a new beginning ends an unfinished sequence, and so does the end") {
  CHECK(shown("\xE2\x82\xC3\xA9") == sign + "\xC3\xA9");
  CHECK(shown("\xE2\x82") == sign);
  Utf8Stream stream;
  CHECK(stream.add("\xF0\x9F").empty());
  CHECK(stream.finish() == sign);
  CHECK(stream.finish().empty());
}

TEST_CASE("utf-8 stream: how the bytes are cut makes no difference") {
  const std::string bytes = "x\xE2\x82\xAC\xF0\x9F\x90\x8D\xE2\x82y\xED\xA0\x80\xC3\xA9\xF1\x80";
  for (size_t first = 0; first <= bytes.size(); ++first)
    for (size_t second = first; second <= bytes.size(); ++second) {
      Utf8Stream stream;
      std::string text = stream.add(bytes.substr(0, first));
      text += stream.add(bytes.substr(first, second - first));
      text += stream.add(bytes.substr(second));
      CHECK(text + stream.finish() == shown(bytes));
    }
}
