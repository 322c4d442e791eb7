#include "adder/core/error.h"
#include "adder/core/random.h"
#include "adder/data/safetensors.h"
#include "adder/tests/temporary_folder.h"

#include "catch.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

using namespace adder;

namespace {

// A file of that header and so many bytes, 0, 1, 2, ...
std::string file_of(const std::string& header, int bytes) {
  const uint64_t length = header.size();
  std::string text(8, '\0');
  std::memcpy(text.data(), &length, 8);
  text += header;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(i);
  return text;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string whole(const std::string& entries, const std::string& data) {
  return file_of(entries, 0) + data;
}

}  // namespace

TEST_CASE("safetensors: what was written comes back bit for bit, whatever the type") {
  const TemporaryFolder folder;
  const Tensor narrow = to(from_host({2, 3}, std::array<double, 6>{1, -2, 3.5, 1e-30, 0.1, 7}), DType::bf16);
  const Tensor whole_numbers = from_host({3}, std::array<int32_t, 3>{-1, 2, 1 << 30});
  const Tensor f32 = from_host({2, 1, 2}, std::array<double, 4>{0.1, -0.0, 1e-40, 3e38});
  const Tensor f64 = from_host({}, std::array<double, 1>{0.1}, DType::f64);
  const Tensor none({0, 4}, DType::f32);
  const std::vector<NamedTensor> tensors = {
      {"b", {6}, narrow}, {"i", {3}, whole_numbers}, {"f", {2, 1, 2}, f32}, {"d", {}, f64}, {"none", {0, 4}, none}};
  write_safetensors(folder / "a", tensors, {{"format", "pt"}});
  const SafetensorsFile file(folder / "a");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  REQUIRE(file.tensors().size() == 5);
  CHECK(file.tensors().at("d").begin == 0);  // wide types first
  for (const NamedTensor& t : tensors) {
    CHECK(file.tensors().at(t.name).shape == t.shape);
    const Tensor back(t.shape, t.tensor.dtype());
    file.read(t.name, back);
    CHECK(bitwise_equal(back, t.tensor.reshape(t.shape)));
  }
  CHECK(bitwise_equal(file.read("b"), to(narrow, DType::f32).reshape({6})));

  const std::vector<NamedTensor> other_order(tensors.rbegin(), tensors.rend());
  write_safetensors(folder / "b", other_order, {{"format", "pt"}});
  CHECK(file_bytes(folder / "a") == file_bytes(folder / "b"));
  CHECK((file_bytes(folder / "a").size() - 8 - 6 * 2 - 3 * 4 - 4 * 4 - 8) % 8 == 0);  // the header
}

TEST_CASE("safetensors: floating types are converted, half precision included") {
  const TemporaryFolder folder;
  // 1, -2, the largest, the least normal and subnormal, -0, infinity, NaN
  const std::vector<uint16_t> halves = {0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x8000, 0x7c00, 0x7e01};
  const SafetensorsFile file(folder.write("half", whole(
      R"({"h":{"dtype":"F16","shape":[8],"data_offsets":[0,16]},
          "d":{"dtype":"F64","shape":[1],"data_offsets":[16,24]}})",
      bytes_of(halves) + bytes_of(std::vector<double>{0.1}))));
  const auto h = to_host(file.read("h"));
  const double infinity = std::numeric_limits<double>::infinity();
  const double expected[] = {1, -2, 65504, std::ldexp(1, -14), std::ldexp(1, -24), -0.0, infinity};
  for (size_t i = 0; i < 7; ++i) CHECK(std::bit_cast<uint64_t>(h[i]) == std::bit_cast<uint64_t>(expected[i]));
  CHECK(std::isnan(h[7]));
  const Tensor f32({1}, DType::f32);
  file.read("d", f32);
  CHECK(item(f32) == 0.1f);
}

TEST_CASE("safetensors: a tensor larger than a piece of reading comes back whole") {
  const TemporaryFolder folder;
  const Tensor t({3, 500'001}, DType::f32);
  for (int64_t i = 0; i < t.count(); ++i) t.data<float>()[i] = static_cast<float>(i);
  write_safetensors(folder / "a", {{"t", t.shape(), t}});
  CHECK(bitwise_equal(SafetensorsFile(folder / "a").read("t"), t));
}

TEST_CASE("safetensors: damaged files are refused in a sentence that names file and tensor") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& bytes, const std::string& why) {
    const std::string path = folder.write("x.safetensors", bytes);
    CAPTURE(why);
    CHECK_THROWS_WITH(SafetensorsFile(path), ContainsSubstring(path + ": ") && ContainsSubstring(why));
  };
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& range) {
    return "{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + range + "}";
  };
  const std::string a = "\"a\":" + entry("\"F32\"", "[2]", "[0,8]");
  CHECK_NOTHROW(SafetensorsFile(folder.write("good", file_of("{" + a + "}", 8))));

  refused("", "0 bytes are too few");
  refused("1234567", "7 bytes are too few");
  refused(std::string(8, '\xff'), "a header of 18446744073709551615 bytes does not fit");
  refused(file_of("{" + a + "}", 8).substr(0, 30), "bytes does not fit a file of 30");
  refused(std::string("\x01\0\0\0\0\0\0\0", 8), "a header of 1 bytes does not fit a file of 8");
  refused(file_of("", 0), "the header is malformed");
  refused(file_of("{", 0), "the header is malformed");
  refused(file_of("{\"a\xff\":1}", 0), "the header is malformed");
  refused(file_of("[]", 0), "is not an object");
  refused(file_of("{" + a + "," + a + "}", 8), "\"a\" is there twice");
  refused(file_of(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
          "\"dtype\" is there twice");
  refused(file_of(std::string(100'000, '['), 0), "more than 100 lists");
  refused(file_of("{\"__metadata__\":{\"a\":1}," + a + "}", 8), "__metadata__");
  refused(file_of("{\"a\":7}", 0), "a: not {dtype, shape, data_offsets} but 7");
  refused(file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"offsets\":[0,8]}}", 8), "a: ");

  const auto bad_entry = [&](const std::string& dtype, const std::string& shape, const std::string& range,
                             const std::string& why) {
    refused(file_of("{\"w\":" + entry(dtype, shape, range) + "}", 8), why);
  };
  bad_entry("\"F8_E4M3\"", "[8]", "[0,8]", "w: the dtype \"F8_E4M3\" is not one of");
  bad_entry("4", "[2]", "[0,8]", "w: ");
  bad_entry("\"F32\"", "[-2]", "[0,8]", "w: -2 is not a size");
  bad_entry("\"F32\"", "[2.0]", "[0,8]", "w: 2.0 is not a size");
  bad_entry("\"F32\"", "2", "[0,8]", "w: the shape 2 is not a list");
  bad_entry("\"F32\"", "[1,1,1,1,1,1,2]", "[0,8]", "is not a list of up to 6");
  bad_entry("\"F32\"", "[4294967296,4294967296]", "[0,8]", "is too large");
  bad_entry("\"F32\"", "[18446744073709551615]", "[0,8]", "is not a size");
  bad_entry("\"F32\"", "[2]", "[0]", "w: the offsets [0] are not");
  bad_entry("\"F32\"", "[2]", "[8,0]", "takes 8 bytes but its range is [8,0]");
  bad_entry("\"F32\"", "[2]", "[0,4]", "w: F32 [2] takes 8 bytes but its range is [0,4]");
  bad_entry("\"F32\"", "[2]", "[0,\"8\"]", "w: \"8\" is not a size");

  const std::string late = "\"b\":" + entry("\"F32\"", "[1]", "[12,16]");
  const std::string overlap = "\"b\":" + entry("\"F32\"", "[1]", "[4,8]");
  refused(file_of("{" + a + "," + late + "}", 16), "b begins at byte 12, after a gap from 8");
  refused(file_of("{" + a + "," + overlap + "}", 8), "b begins at byte 4, where another tensor goes on to 8");
  refused(file_of("{" + a + "}", 7), "a ends at byte 8 of 7");
  refused(file_of("{" + a + "}", 9), "the tensors take 8 bytes of 9");
  CHECK_THROWS_WITH(SafetensorsFile(folder / "none"), ContainsSubstring("none: cannot be opened (No such file"));
  CHECK_THROWS_WITH(SafetensorsFile(folder.path()), ContainsSubstring("is not a file"));
}

TEST_CASE("safetensors: a flipped bit or a cut leads to an error or to tensors that can be read, never out of bounds") {
  const TemporaryFolder folder;
  const std::vector<NamedTensor> tensors = {{"w", {2, 3}, zeros({2, 3})}, {"x.y", {5}, zeros({5}, DType::f64)}};
  write_safetensors(folder / "a", tensors, {{"format", "pt"}});
  const std::string whole_file = file_bytes(folder / "a");
  const Random random(3, "flips");
  int refused = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    std::string bytes = whole_file;
    const size_t at = random.bits(2 * i) % bytes.size();
    if (i % 8 == 0) bytes.resize(at);
    else bytes[at] = static_cast<char>(bytes[at] ^ 1 << random.bits(2 * i + 1) % 8);
    const std::string path = folder.write("b", bytes);
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, entry] : file.tensors()) CHECK(file.read(name).count() == entry.shape.count());
    } catch (const Error& error) {
      CHECK_THAT(error.what(), ContainsSubstring(path));
      ++refused;
    }
  }
  CHECK(refused > 100);
}

TEST_CASE("safetensors: a tensor is read only as what it is") {
  const TemporaryFolder folder;
  write_safetensors(folder / "a", {{"w", {2, 3}, zeros({2, 3})}, {"i", {1}, zeros({1}, DType::i32)}});
  const SafetensorsFile file(folder / "a");
  CHECK_THROWS_WITH(file.read("v"), ContainsSubstring("a: has no tensor v"));
  CHECK_THROWS_WITH(file.read("w", zeros({3, 2})), ContainsSubstring("w has shape [2, 3], not [3, 2]"));
  CHECK_THROWS_WITH(file.read("i", zeros({1})), ContainsSubstring("i is I32 and cannot become"));
  CHECK_THROWS_WITH(write_safetensors(folder / "b", {{"w", {1}, zeros({1})}, {"w", {1}, zeros({1})}}),
                    ContainsSubstring("two tensors w"));
  CHECK_THROWS_WITH(write_safetensors(folder / "b", {{"w", {2}, zeros({3})}}),
                    ContainsSubstring("w [3] cannot be written as [2]"));
  CHECK(!std::filesystem::exists(folder / "b"));
}
