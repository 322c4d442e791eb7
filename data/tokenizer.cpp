#include "adder/data/tokenizer.h"

#include "adder/core/error.h"

namespace adder {

std::vector<int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  tokens.reserve(text.size() + 1);
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

std::string ByteTokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) {
    check(token >= 0 && token < vocabulary(), "decode: token {} is outside 0..{}", token, vocabulary() - 1);
    if (token != end_of_document()) text.push_back(static_cast<char>(token));
  }
  return text;
}

}  // namespace adder
