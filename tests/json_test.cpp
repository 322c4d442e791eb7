#include "adder/core/error.h"
#include "adder/core/json.h"

#include "catch.h"

#include <limits>

using namespace adder;

TEST_CASE("json: what is written is read again, in its order, with integers apart from other numbers") {
  const Json json = Json::object({{"z", 3}, {"a", 2.0}, {"list", Json::array({true, "é\n\"", Json(), Json::object()})},
                                  {"large", std::numeric_limits<int64_t>::max()}, {"tenth", 0.1}});
  const std::string text = R"({"z":3,"a":2.0,"list":[true,"é\n\"",null,{}],"large":9223372036854775807,"tenth":0.1})";
  CHECK(json.text() == text);
  CHECK(Json::parse(text) == json);
  CHECK(Json::parse(json.text(2)) == json);
  CHECK(Json::parse(text).at("z").is_integer());
  CHECK_FALSE(Json::parse(text).at("a").is_integer());
  CHECK(Json::parse("9223372036854775808").number() == 9223372036854775808.0);
  CHECK_FALSE(Json::parse("9223372036854775808").is_integer());
  CHECK(Json("a\xff").text() == "\"a\ufffd\"");
}

TEST_CASE("json: fields are found, set and added; of one name the last counts, and alone is written") {
  Json json = Json::parse(R"({"a": 1, "b": 2, "a": 3})");
  CHECK(json.fields().size() == 3);
  CHECK(json.at("a") == 3);
  CHECK(json.find("c") == nullptr);
  CHECK(Json(3).find("c") == nullptr);
  json["b"] = "two";
  json["c"]["d"] = 4;
  json["e"].push_back(5);
  CHECK(json.text() == R"({"a":3,"b":"two","c":{"d":4},"e":[5]})");
  CHECK(Json(1) == Json(1.0));
  CHECK_FALSE(Json(1) == Json(true));
  CHECK_FALSE(Json::parse("[1, 2]") == Json::parse("[2, 1]"));
}

TEST_CASE("json: what is not JSON, or of another kind, is said in words") {
  CHECK_THROWS_WITH(Json::parse("{\"a\": oops}"), "byte 7: not JSON");
  for (const char* bad : {"", "{", "[1,]", "{\"a\":1}}", "nul", "\"\xff\"", "1e999", "'a'", "[1] 2"}) {
    CAPTURE(bad);
    CHECK_THROWS_WITH(Json::parse(bad), ContainsSubstring(": not JSON"));
    CHECK(Json::parse_or_null(bad).is_null());
  }
  CHECK(Json::parse(std::string(100, '[') + std::string(100, ']')).is_array());
  CHECK_THROWS_WITH(Json::parse(std::string(1'000'000, '[')), "more than 100 lists and objects inside each other");
  CHECK_THROWS_WITH(Json("a").integer(), "\"a\" is not an integer");
  CHECK_THROWS_WITH(Json(1.5).integer(), "1.5 is not an integer");
  CHECK_THROWS_WITH(Json(1).string(), "1 is not a text");
  CHECK_THROWS_WITH(Json(1).values(), "1 is not a list");
  CHECK_THROWS_WITH(Json(1).fields(), "1 is not an object");
  CHECK_THROWS_WITH(Json(1).flag(), "1 is not true or false");
  CHECK_THROWS_WITH(Json("x").number(), "\"x\" is not a number");
  CHECK_THROWS_WITH(Json::parse("{}").at("a"), "no \"a\"");
  CHECK_THROWS_WITH(Json(1).push_back(2), "1 is not a list");
}
