// Text: documents from the disk, one at a time, and Pile-style .jsonl[.zst] files.
#pragma once

#include "adder/data/file.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace adder {

struct Document {
  std::string text;    // UTF-8
  std::string source;  // the Pile's meta.pile_set_name
};

struct TextProgress {
  int64_t documents = 0;
  int64_t text_bytes = 0;
  int64_t read_bytes = 0;   // of the files, as stored
  int64_t total_bytes = 0;  // of the files, as stored
  int64_t skipped_files = 0;  // binary files met in folders
};

/// Calls visit for every document of the inputs, in order, holding one document at a time. An input is
///   NAME.jsonl[.zst|.gz]  one document a line: {"text": "...", "meta": {"pile_set_name": "..."}}, meta optional;
///   any other file        plain text, [.zst|.gz], cut at the ends of lines into documents of at most 64 KiB, so that
///                         one long file can be split into training and validation text;
///   a folder              every such file below it, in the order of the sorted paths. Hidden entries are left out and
///                         so are files with a zero byte in the first 8 KiB, which are not text.
/// Documents without a pile_set_name get their folder's name as given, or "text". Documents without text are left out.
/// Errors name the file and, where there is one, the line: no such file, cut short, not JSON, no "text", not UTF-8
/// (with the byte's number in its line, from 1).
TextProgress read_text(const std::vector<std::string>& inputs, const std::function<void(const Document&)>& visit,
                       const std::function<void(const TextProgress&)>& progress = {});

/// Writes documents as Pile-style lines; the file appears at finish().
class TextWriter {
 public:
  explicit TextWriter(const std::string& path) : file_(path) {}
  void add(const Document& document);
  void finish() { file_.commit(); }

 private:
  OutputFile file_;
};

/// Where the first byte stands that is not UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF).
std::optional<size_t> invalid_utf8(std::string_view text);

/// 64 bits of the bytes, the same on every machine: FNV-1a, then mixed so that every bit counts.
uint64_t hash_bytes(std::string_view bytes);

}  // namespace adder
