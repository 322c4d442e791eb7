#include "adder/core/json.h"

#include "adder/core/error.h"

#include <nlohmann/json.hpp>

#include <algorithm>

namespace adder {
namespace {

using Parsed = nlohmann::ordered_json;

constexpr size_t deepest = 100;  // a value is destroyed by recursion

// Builds the value while nlohmann's parser reads: its own tree would forget that a name stood twice.
class Builder final : public nlohmann::json_sax<Parsed> {
 public:
  bool null() override { return put({}); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(int64_t value) override { return put(value); }
  bool number_unsigned(uint64_t value) override {
    return value <= uint64_t{INT64_MAX} ? put(static_cast<int64_t>(value)) : put(static_cast<double>(value));
  }
  bool number_float(double value, const std::string&) override { return put(value); }
  bool string(std::string& value) override { return put(std::move(value)); }
  bool binary(Parsed::binary_t&) override { return false; }  // not in a text
  bool start_array(size_t) override { return open(Json::array()); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool key(std::string& name) override {
    around_.back().name = std::move(name);
    return true;
  }
  bool end_array() override { return close(); }
  bool end_object() override { return close(); }
  bool parse_error(size_t byte, const std::string&, const nlohmann::detail::exception&) override {
    byte_ = byte;
    return false;
  }

  Json take() { return std::move(value_); }
  size_t byte() const { return byte_; }
  bool too_deep() const { return around_.size() > deepest; }

 private:
  // An array or object whose end is not read yet, and in an object the name of what comes next.
  struct Open {
    Json json;
    std::string name;
  };

  bool open(Json empty) {
    around_.push_back({std::move(empty), {}});
    return !too_deep();
  }
  bool close() {
    Json done = std::move(around_.back().json);
    around_.pop_back();
    return put(std::move(done));
  }
  bool put(Json value) {
    if (around_.empty()) value_ = std::move(value);
    else if (auto& [json, name] = around_.back(); json.is_array()) json.push_back(std::move(value));
    else json.push_back(std::move(name), std::move(value));
    return true;
  }

  std::vector<Open> around_;
  Json value_;
  size_t byte_ = 0;
};

Parsed to_parsed(const Json& json) {
  if (json.is_flag()) return json.flag();
  if (json.is_integer()) return json.integer();
  if (json.is_number()) return json.number();
  if (json.is_string()) return json.string();
  if (json.is_array()) {
    Parsed array = Parsed::array();
    for (const Json& value : json.values()) array.push_back(to_parsed(value));
    return array;
  }
  if (json.is_object()) {
    Parsed object = Parsed::object();
    for (const auto& [name, value] : json.fields()) object[name] = to_parsed(value);
    return object;
  }
  return nullptr;
}

// Not check(), which would write the text of every value that is right as well.
[[noreturn]] void refuse(const Json& json, const char* why) { fail("{} {}", json.text(), why); }

}  // namespace

Json Json::array(Array values) {
  Json json;
  json.value_ = std::move(values);
  return json;
}

Json Json::object(Object fields) {
  Json json;
  json.value_ = std::move(fields);
  return json;
}

Json Json::parse(std::string_view text) {
  Builder builder;
  const bool read = Parsed::sax_parse(text, &builder);
  check(!builder.too_deep(), "more than {} lists and objects inside each other", deepest);
  check(read, "byte {}: not JSON", builder.byte());
  return builder.take();
}

Json Json::parse_or_null(std::string_view text) {
  Builder builder;
  return Parsed::sax_parse(text, &builder) ? builder.take() : Json();
}

std::string Json::text(int indent) const {
  return to_parsed(*this).dump(indent, ' ', false, Parsed::error_handler_t::replace);
}

bool Json::flag() const {
  if (!is_flag()) refuse(*this, "is not true or false");
  return std::get<bool>(value_);
}
int64_t Json::integer() const {
  if (!is_integer()) refuse(*this, "is not an integer");
  return std::get<int64_t>(value_);
}
double Json::number() const {
  if (!is_number()) refuse(*this, "is not a number");
  return is_integer() ? static_cast<double>(std::get<int64_t>(value_)) : std::get<double>(value_);
}
const std::string& Json::string() const {
  if (!is_string()) refuse(*this, "is not a text");
  return std::get<std::string>(value_);
}
const Json::Array& Json::values() const {
  if (!is_array()) refuse(*this, "is not a list");
  return std::get<Array>(value_);
}
const Json::Object& Json::fields() const {
  if (!is_object()) refuse(*this, "is not an object");
  return std::get<Object>(value_);
}

const Json* Json::find(std::string_view name) const {
  if (!is_object()) return nullptr;
  const Object& all = fields();
  const auto at = std::find_if(all.rbegin(), all.rend(), [&](const auto& field) { return field.first == name; });
  return at == all.rend() ? nullptr : &at->second;
}

const Json& Json::at(std::string_view name) const {
  const Json* const value = find(name);
  check(value != nullptr, "no \"{}\"", name);
  return *value;
}

Json& Json::operator[](std::string_view name) {
  if (auto* const fields = std::get_if<Object>(&value_)) {
    const auto found = std::find_if(fields->rbegin(), fields->rend(), [&](const auto& f) { return f.first == name; });
    if (found != fields->rend()) return found->second;
  }
  push_back(std::string(name), {});
  return std::get<Object>(value_).back().second;
}

void Json::push_back(Json value) {
  if (is_null()) value_ = Array();
  if (!is_array()) refuse(*this, "is not a list");
  std::get<Array>(value_).push_back(std::move(value));
}

void Json::push_back(std::string name, Json value) {
  if (is_null()) value_ = Object();
  if (!is_object()) refuse(*this, "is not an object");
  std::get<Object>(value_).emplace_back(std::move(name), std::move(value));
}

bool operator==(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number() && a.is_integer() != b.is_integer()) return a.number() == b.number();
  return a.value_ == b.value_;
}

}  // namespace adder
