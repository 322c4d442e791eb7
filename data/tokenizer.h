// Tokenizers: text to token numbers and back.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace adder {

/// Token b in 0..255 is the byte b; token 256 ends a document. Every text has exactly one encoding.
/// Another tokenizer is another struct with these members; token files remember which one wrote them by its name.
struct ByteTokenizer {
  int64_t vocabulary() const { return 257; }
  int32_t end_of_document() const { return 256; }
  std::string name() const { return "bytes 0-255, end of document 256"; }

  std::vector<int32_t> encode(std::string_view text) const; // without the end of the document
  std::string decode(std::span<const int32_t> tokens) const;  // ends of documents become nothing; fails outside 0..256
};

}  // namespace adder
