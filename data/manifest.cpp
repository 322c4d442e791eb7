#include "adder/data/manifest.h"

#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/data/file.h"

#include <algorithm>
#include <cstdlib>

namespace adder {

namespace {

std::string hex(uint32_t crc) { return fmt::format("{:08x}", crc); }

// ---- writing

// A double goes as text: JSON has neither infinity nor NaN.
Json to_json(const Value& value) {
  if (const auto* number = std::get_if<double>(&value)) return Json::object({{"double", fmt::format("{}", *number)}});
  if (const auto* integer = std::get_if<int64_t>(&value)) return *integer;
  return std::get<std::string>(value);
}

Json to_json(const StoredTensor& tensor) {
  Json shape = Json::array(), pieces = Json::array();
  for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
  for (const StoredPiece& p : tensor.pieces)
    pieces.push_back(Json::object({{"begin", p.begin}, {"end", p.end}, {"file", p.file}, {"crc", hex(p.crc)}}));
  return Json::object({{"dtype", name(tensor.dtype)}, {"shape", shape}, {"axis", tensor.axis}, {"pieces", pieces}});
}

// ---- reading: Error on anything unexpected

int64_t integer(const Json& entry, int64_t low, int64_t high) {
  const int64_t value = entry.integer();
  check(low <= value && value <= high, "{} is not in {} to {}", value, low, high);
  return value;
}
int64_t size(const Json& entry) { return integer(entry, 0, INT64_MAX); }

uint32_t crc(const Json& entry) {
  const std::string& text = entry.string();
  const auto value = static_cast<uint32_t>(std::strtoul(text.c_str(), nullptr, 16));
  check(hex(value) == text, "\"{}\" is not a checksum", text);
  return value;
}

DType dtype(const Json& entry) {
  const std::string& text = entry.string();
  for (const DType type : {DType::f32, DType::f64, DType::bf16, DType::i32})
    if (text == name(type)) return type;
  fail("\"{}\" is not a dtype", text);
}

Value to_value(const Json& entry) {
  if (entry.is_string()) return entry.string();
  if (entry.is_object()) return std::strtod(entry.at("double").string().c_str(), nullptr);
  return integer(entry, INT64_MIN, INT64_MAX);
}

StoredTensor to_tensor(const Json& entry) {
  StoredTensor tensor{.dtype = dtype(entry.at("dtype")), .shape = {}, .axis = -1, .pieces = {}};
  int64_t bytes = size_of(tensor.dtype);
  for (const Json& axis : entry.at("shape").values()) {
    const int64_t length = size(axis);
    check(tensor.shape.rank() < Shape::max_rank, "a shape has more than {} axes", Shape::max_rank);
    check(length == 0 || bytes <= INT64_MAX / length, "a tensor has more than {} bytes", INT64_MAX);
    bytes *= std::max<int64_t>(length, 1);
    tensor.shape = tensor.shape.plus(length);
  }
  tensor.axis = static_cast<int>(integer(entry.at("axis"), -1, tensor.shape.rank() - 1));
  for (const Json& piece : entry.at("pieces").values()) {
    const int64_t end = integer(piece.at("end"), 0, tensor.length());
    tensor.pieces.push_back({.begin = integer(piece.at("begin"), 0, end),
                             .end = end,
                             .file = size(piece.at("file")),
                             .crc = crc(piece.at("crc"))});
  }
  return tensor;
}

Manifest to_manifest(const Json& entry) {
  Manifest manifest;
  manifest.format = size(entry.at("format"));
  if (manifest.format != Manifest::current_format) return manifest;
  manifest.step = size(entry.at("step"));
  for (const Json& file : entry.at("files").values())
    manifest.files.push_back({.bytes = size(file.at("bytes")), .crc = crc(file.at("crc"))});
  for (const auto& [name, tensor] : entry.at("tensors").fields()) manifest.tensors[name] = to_tensor(tensor);
  for (const auto& [state, values] : entry.at("values").fields()) {
    Values& to = manifest.values[state];
    for (const auto& [name, value] : values.fields()) to[name] = to_value(value);
  }
  return manifest;
}

// The first line: with the rest it makes one JSON object.
std::string first_line(std::string_view rest) {
  return fmt::format("{{\"crc\": \"{:08x}\",\n", crc_of(rest.data(), rest.size()));
}

}  // namespace

std::string to_text(const Manifest& manifest) {
  Json files = Json::array(), tensors = Json::object(), values = Json::object();
  for (const StoredFile& file : manifest.files)
    files.push_back(Json::object({{"bytes", file.bytes}, {"crc", hex(file.crc)}}));
  for (const auto& [name, tensor] : manifest.tensors) tensors.push_back(name, to_json(tensor));
  for (const auto& [state, held] : manifest.values) {
    Json& to = values[state] = Json::object();
    for (const auto& [name, value] : held) to[name] = to_json(value);
  }
  const Json all = Json::object({{"format", manifest.format}, {"step", manifest.step}, {"files", files},
                                 {"tensors", tensors}, {"values", values}});
  // Values may hold any bytes, such as a path that is not UTF-8: replaced, so that a save never fails for them.
  const std::string rest = all.text(1).substr(2) + "\n";
  return first_line(rest) + rest;
}

Manifest parse_manifest(const std::string& text, const std::string& name) {
  const auto line = std::min(text.find('\n'), text.size() - 1) + 1;
  check(!text.empty() && text.substr(0, line) == first_line(std::string_view(text).substr(line)),
        "{}: its checksum does not match", name);
  try {
    return to_manifest(Json::parse(text));
  } catch (const std::exception& error) {
    fail("{}: malformed ({})", name, error.what());
  }
}

void merge(Manifest& manifest, const Manifest& rank) {
  manifest.files.insert(manifest.files.end(), rank.files.begin(), rank.files.end());
  for (const auto& [name, tensor] : rank.tensors) {
    const auto [at, added] = manifest.tensors.emplace(name, tensor);
    if (added) continue;
    StoredTensor& to = at->second;
    check(to.shape == tensor.shape && to.dtype == tensor.dtype && to.axis == tensor.axis,
          "{}: {} {} cut along axis {} on one rank and {} {} along axis {} on another", name, adder::name(to.dtype),
          to_string(to.shape), to.axis, adder::name(tensor.dtype), to_string(tensor.shape), tensor.axis);
    for (const StoredPiece& piece : tensor.pieces) {
      const auto same = [&](const StoredPiece& p) { return p.begin == piece.begin && p.end == piece.end; };
      if (std::none_of(to.pieces.begin(), to.pieces.end(), same)) to.pieces.push_back(piece);
    }
  }
  for (const auto& [state, values] : rank.values) manifest.values.emplace(state, values);
}

void check_complete(const Manifest& manifest, const std::string& name) {
  for (const auto& [tensor_name, tensor] : manifest.tensors) {
    std::vector<StoredPiece> pieces = tensor.pieces;
    std::sort(pieces.begin(), pieces.end(), [](const auto& a, const auto& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    int64_t end = 0;
    for (const StoredPiece& piece : pieces) {
      check(piece.begin == end, "{}: {} has a piece from {} where {} was expected", name, tensor_name, piece.begin,
            end);
      check(piece.file < static_cast<int64_t>(manifest.files.size()), "{}: {} lies in file {} of {}", name, tensor_name,
            piece.file, manifest.files.size());
      end = piece.end;
    }
    check(end == tensor.length(), "{}: {} has {} of {} along axis {}", name, tensor_name, end, tensor.length(),
          tensor.axis);
  }
}

}  // namespace adder
