#include "adder/data/text.h"

#include "adder/core/error.h"
#include "adder/core/json.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

namespace adder {

namespace fs = std::filesystem;

namespace {

constexpr size_t chunk_bytes = size_t{1} << 18;   // of one read
constexpr size_t piece_bytes = size_t{1} << 16;   // of one document of a plain file
constexpr size_t binary_bytes = size_t{1} << 13;  // looked through for a zero byte

struct Input {
  std::string path;
  std::string source;
  bool found = false;  // in a folder, rather than named by the user
};

bool is_jsonl(std::string_view path) {
  for (std::string_view packed : {".zst", ".gz"})
    if (path.ends_with(packed)) path.remove_suffix(packed.size());
  return path.ends_with(".jsonl");
}

void list_folder(const fs::path& folder, const std::string& source, std::vector<Input>& to) {
  std::vector<fs::path> found;
  for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::recursive_directory_iterator(); ++entry) {
    const bool hidden = entry->path().filename().string().starts_with('.');
    if (hidden && entry->is_directory()) entry.disable_recursion_pending();
    if (!hidden && entry->is_regular_file()) found.push_back(entry->path());
  }
  std::sort(found.begin(), found.end());
  for (const auto& path : found) to.push_back({path.string(), source, true});
}

std::vector<Input> list_inputs(const std::vector<std::string>& inputs) {
  std::vector<Input> list;
  for (const auto& path : inputs) {
    check(fs::exists(path), "{}: no such file or folder", path);
    if (fs::is_directory(path)) {
      const auto absolute = fs::weakly_canonical(path);
      const size_t before = list.size();
      list_folder(path, absolute.has_filename() ? absolute.filename().string() : "text", list);
      check(list.size() > before, "{}: the folder holds no files", path);
    } else {
      list.push_back({path, "text"});
    }
  }
  return list;
}

void check_utf8(std::string_view text, const std::string& path, int64_t first_line) {
  const auto bad = invalid_utf8(text);
  if (!bad) return;
  const auto before = text.substr(0, *bad);
  const auto line = first_line + std::count(before.begin(), before.end(), '\n');
  const auto start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  fail("{}, line {}, byte {}: not UTF-8 (0x{:02x})", path, line, *bad - start + 1,
       static_cast<unsigned char>(text[*bad]));
}

Document parse_line(std::string_view line, const Input& input, int64_t number) {
  check_utf8(line, input.path, number);
  Json json;
  try {
    json = Json::parse(line);
  } catch (const Error& error) {
    fail("{}, line {}, {}", input.path, number, error.what());
  }
  check(json.is_object(), "{}, line {}: not a JSON object", input.path, number);
  const Json* const text = json.find("text");
  check(text != nullptr, "{}, line {}: no \"text\"", input.path, number);
  check(text->is_string(), "{}, line {}: \"text\" is not a string", input.path, number);
  Document document{text->string(), input.source};
  const Json* const meta = json.find("meta");
  const Json* const name = meta ? meta->find("pile_set_name") : nullptr;
  if (!name) return document;
  check(name->is_string(), "{}, line {}: \"pile_set_name\" is not a string", input.path, number);
  document.source = name->string();
  return document;
}

/// How many bytes of `text` the next document of a plain file takes: to the last end of a line in its second half,
/// else to the last whole character.
size_t cut(std::string_view text) {
  if (text.size() <= piece_bytes) return text.size();
  const auto line = text.substr(0, piece_bytes).rfind('\n');
  if (line != std::string_view::npos && line >= piece_bytes / 2) return line + 1;
  size_t end = piece_bytes;
  while (end > piece_bytes - 4 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return end;
}

/// Reads on until `wanted` bytes are held or the file ends; true if it has ended.
bool fill(InputFile& file, std::string& held, size_t wanted) {
  while (held.size() < wanted) {
    const size_t before = held.size();
    held.resize(before + chunk_bytes);
    held.resize(before + file.read(std::span(held).subspan(before)));
    if (held.size() < before + chunk_bytes) return true;
  }
  return false;
}

class Reader {
 public:
  Reader(const std::function<void(const Document&)>& visit, const std::function<void(const TextProgress&)>& progress)
      : visit_(visit), progress_(progress) {}

  TextProgress read(const std::vector<Input>& inputs) {
    for (const auto& input : inputs) state_.total_bytes += static_cast<int64_t>(fs::file_size(input.path));
    for (const auto& input : inputs) {
      InputFile file(input.path);
      if (is_jsonl(input.path)) {
        read_lines(file, input);
      } else {
        read_plain(file, input);
      }
      finished_bytes_ += static_cast<int64_t>(fs::file_size(input.path));
    }
    state_.read_bytes = state_.total_bytes;
    if (progress_) progress_(state_);
    return state_;
  }

 private:
  void give(const Document& document, const InputFile& file) {
    if (document.text.empty()) return;
    visit_(document);
    ++state_.documents;
    state_.text_bytes += static_cast<int64_t>(document.text.size());
    state_.read_bytes = finished_bytes_ + file.position();
    if (progress_) progress_(state_);
  }

  void read_lines(InputFile& file, const Input& input) {
    std::string held;
    size_t start = 0, searched = 0;
    int64_t number = 1;
    for (bool ended = false; !ended || start < held.size();) {
      const auto end = held.find('\n', searched);
      if (end == std::string::npos && !ended) {
        held.erase(0, start);
        start = 0;
        searched = held.size();
        ended = fill(file, held, held.size() + 1);
        continue;
      }
      const auto line = std::string_view(held).substr(start, std::min(end, held.size()) - start);
      if (line.find_first_not_of(" \t\r") != std::string_view::npos) give(parse_line(line, input, number), file);
      ++number;
      start = searched = std::min(end, held.size() - 1) + 1;
    }
  }

  void read_plain(InputFile& file, const Input& input) {
    std::string held;
    bool ended = fill(file, held, piece_bytes + 1);
    if (input.found && std::string_view(held).substr(0, binary_bytes).find('\0') != std::string_view::npos) {
      ++state_.skipped_files;
      return;
    }
    size_t start = 0;
    int64_t line = 1;
    while (!ended || start < held.size()) {
      if (!ended && held.size() - start <= piece_bytes) {
        held.erase(0, start);
        start = 0;
        ended = fill(file, held, piece_bytes + 1);
        continue;
      }
      const auto piece = std::string_view(held).substr(start, cut(std::string_view(held).substr(start)));
      check_utf8(piece, input.path, line);
      line += std::count(piece.begin(), piece.end(), '\n');
      give({std::string(piece), input.source}, file);
      start += piece.size();
    }
  }

  const std::function<void(const Document&)>& visit_;
  const std::function<void(const TextProgress&)>& progress_;
  TextProgress state_;
  int64_t finished_bytes_ = 0;
};

}  // namespace

TextProgress read_text(const std::vector<std::string>& inputs, const std::function<void(const Document&)>& visit,
                       const std::function<void(const TextProgress&)>& progress) {
  return Reader(visit, progress).read(list_inputs(inputs));
}

void TextWriter::add(const Document& document) {
  const Json line = Json::object({{"text", document.text},
                                  {"meta", Json::object({{"pile_set_name", document.source}})}});
  file_.write(line.text() + "\n");
}

std::optional<size_t> invalid_utf8(std::string_view text) {
  const auto byte = [&](size_t i) -> unsigned { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  const auto follows = [&](size_t i, unsigned low = 0x80, unsigned high = 0xbf) {
    return byte(i) >= low && byte(i) <= high;
  };
  for (size_t i = 0; i < text.size();) {
    const unsigned first = byte(i);
    if (first < 0x80) {
      ++i;
    } else if (first >= 0xc2 && first <= 0xdf && follows(i + 1)) {
      i += 2;
    } else if ((first & 0xf0) == 0xe0 && follows(i + 1, first == 0xe0 ? 0xa0 : 0x80, first == 0xed ? 0x9f : 0xbf) &&
               follows(i + 2)) {
      i += 3;
    } else if (first >= 0xf0 && first <= 0xf4 &&
               follows(i + 1, first == 0xf0 ? 0x90 : 0x80, first == 0xf4 ? 0x8f : 0xbf) && follows(i + 2) &&
               follows(i + 3)) {
      i += 4;
    } else {
      return i;
    }
  }
  return std::nullopt;
}

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  hash = (hash ^ (hash >> 32)) * 0x9e3779b97f4a7c15;
  hash = (hash ^ (hash >> 29)) * 0xbf58476d1ce4e5b9;
  return hash ^ (hash >> 32);
}

}  // namespace adder
