// Json: a value that is built, looked into and written, or read from a text.
//
//   Json line = Json::object({{"step", 3}, {"loss", 2.5}});     line.text() == R"({"step":3,"loss":2.5})"
//   Json::parse(text).at("weight_map").fields()   // throws, in words, what is missing or of another kind
//
// The parser behind it costs seconds of compilation wherever it is included: it stands in json.cpp and nowhere else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace adder {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the text, where a name may stand twice

  Json() = default;  // null
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t{value}) {}
  Json(int64_t value) : value_(value) {}
  Json(double value) : value_(value) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  static Json array(Array values = {});
  static Json object(Object fields = {});

  /// The value of a whole text. Throws "byte 10: not JSON" where it ceases to be one, or is nested too deep.
  static Json parse(std::string_view text);
  /// The same, but null for what is not JSON.
  static Json parse_or_null(std::string_view text);
  /// On one line, or on many with so many spaces a level. Bytes that are not UTF-8 are replaced.
  std::string text(int indent = -1) const;

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_flag() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(value_); }  // 3; neither 3.0 nor 2^63
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  // What it holds. Throws if that is something else: "[1] is not a number".
  bool flag() const;
  int64_t integer() const;
  double number() const;
  const std::string& string() const;
  const Array& values() const;   // of an array
  const Object& fields() const;  // of an object

  /// The field of an object, the last of that name; null pointer if there is none or this is no object.
  const Json* find(std::string_view name) const;
  const Json& at(std::string_view name) const;  // throws if there is none
  /// A field of an object to be set, behind the others if it is new; null becomes an object.
  Json& operator[](std::string_view name);
  /// Adds to an array, or a field to an object whether or not there is one of that name; null becomes one of them.
  void push_back(Json value);
  void push_back(std::string name, Json value);

  /// Numbers are compared as numbers: 1 == 1.0.
  friend bool operator==(const Json& a, const Json& b);

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

}  // namespace adder
