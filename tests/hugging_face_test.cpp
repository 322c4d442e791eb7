#include "adder/autograd/gradient_check.h"
#include "adder/core/error.h"
#include "adder/data/hugging_face.h"
#include "adder/data/safetensors.h"
#include "adder/tests/plain_mamba2.h"
#include "adder/tests/temporary_folder.h"

#include "catch.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

using namespace adder;
using hugging_face::Form;
using layers::LanguageModel;
using layers::LanguageModelOptions;

namespace {

const std::string fixtures = std::string(ADDER_SOURCE_DIR) + "/tests/fixtures/hugging_face/";

// A model with parameters of its own.
struct Built {
  explicit Built(const LanguageModelOptions& o, DType type = DType::f32)
      : params(Device::cpu, {.seed = 7, .dtype = type}), model(params, Mesh{}, o) {}
  // Adds noise to every parameter, so that none is what it was made as.
  void disturb() const {
    for (size_t i = 0; i < params.all().size(); ++i) {
      const Tensor& value = params.all()[i].value;
      auto x = to_host(value);
      const auto noise = to_host(random_normal(value.shape(), 50 + i));
      for (size_t k = 0; k < x.size(); ++k) x[k] += 0.2 * noise[k];
      copy(from_host(value.shape(), x, value.dtype()), value);
    }
  }
  Params params;
  LanguageModel model;
};

Built read(const std::string& folder, DType type = DType::f32) {
  Built b(hugging_face::read_options(folder), type);
  hugging_face::read_weights(folder, b.params, b.model);
  return b;
}

void write(const std::string& folder, const Built& b, Form form) {
  hugging_face::write(folder, b.params, b.model, form);
}

double largest(const std::vector<double>& x) {
  double most = 0;
  for (const double v : x) most = std::max(most, std::abs(v));
  return most;
}

double largest_difference(std::vector<double> a, const std::vector<double>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return largest(a);
}

// The largest error of a model's logits over the largest logit, over all sequences of a fixture. Of a long sequence the
// fixture holds the last positions.
double error_on(const LanguageModel& model, const std::string& name) {
  const SafetensorsFile expected(fixtures + name + "/expected.safetensors");
  double error = 0;
  for (const std::string length : {"1", "17", "40", "257"}) {
    if (!expected.tensors().contains("tokens_" + length)) continue;
    const Tensor tokens = expected.read("tokens_" + length);
    const int64_t time = tokens.count();
    const int64_t vocabulary = model.options.vocabulary;
    const Tensor logits = contiguous(model.forward(tokens.reshape({1, time}))).reshape({time, vocabulary});
    const auto theirs = to_host(expected.read("logits_" + length));
    const int64_t held = static_cast<int64_t>(theirs.size()) / vocabulary;
    REQUIRE(held > 0);
    const auto ours = to_host(logits.slice_first(time - held, time));
    error = std::max(error, largest_difference(ours, theirs) / largest(theirs));
  }
  return error;
}

}  // namespace

const std::vector<std::string> all_fixtures{"tied", "groups_2", "groups_4_biases", "plain_conv", "ungrouped_norm"};

TEST_CASE("hugging face: logits are those of the transformers that wrote the model, before 5.23 and since") {
  // Measured: at most 5e-7, in f64 too, so it is theirs: what fp32 leaves of a model of this size.
  const double rounding = 5e-6;
  for (const std::string& name : all_fixtures) {
    CAPTURE(name);
    CHECK(error_on(read(fixtures + name).model, name) < rounding);
    CHECK(error_on(read(fixtures + name, DType::f64).model, name) < rounding);
  }
}

TEST_CASE("hugging face: norm_groups may be set against what config.json says") {
  for (const std::string name : {"groups_2", "ungrouped_norm"}) {
    LanguageModelOptions o = hugging_face::read_options(fixtures + name);
    const int64_t right = o.mixer.norm_groups;
    for (const int64_t norm_groups : {int64_t{1}, o.mixer.groups}) {
      o.mixer.norm_groups = norm_groups;
      const Built b(o);
      hugging_face::read_weights(fixtures + name, b.params, b.model);
      const double error = error_on(b.model, name);
      CAPTURE(name, norm_groups, error);
      CHECK((error < 5e-6) == (norm_groups == right));
    }
  }
}

TEST_CASE("hugging face: a fixture that is written again holds the same tensors, bit for bit") {
  for (const std::string& name : all_fixtures) {
    CAPTURE(name);
    const TemporaryFolder folder;
    write(folder / "copy", read(fixtures + name), Form::transformers);
    const SafetensorsFile was(fixtures + name + "/model.safetensors"), is(folder / "copy/model.safetensors");
    REQUIRE(is.tensors().size() == was.tensors().size());
    for (const auto& [tensor, entry] : was.tensors()) CHECK(bitwise_equal(is.read(tensor), was.read(tensor)));
    CHECK(error_on(read(folder / "copy").model, name) < 5e-6);
  }
}

namespace {

LanguageModelOptions tiny() {
  return {.vocabulary = 27, .pad_vocabulary = 8, .layers = 2,
          .mixer = {.d_model = 12, .d_state = 5, .d_conv = 3, .head_dim = 4, .groups = 3, .chunk = 8}};
}

// One of each option that the authors' form can say.
std::vector<LanguageModelOptions> state_spaces_models() {
  std::vector<LanguageModelOptions> all(5, tiny());
  all[1].tied = false;
  all[1].mixer.bias = true;
  all[1].mixer.conv_bias = false;
  all[1].mixer.dt_min = 0.01;
  all[2].d_intermediate = 128;
  all[2].mixer.norm_before_gate = true;
  all[3].mixer.d_ssm = 12;
  all[3].mixer.D_per_channel = true;
  all[3].mixer.dt_max = 0.3;
  all[4].mixer.rms_norm = false;
  all[4].pad_vocabulary = 1;
  all[4].mixer.groups = 1;
  return all;
}

// Every parameter of both, bit for bit; tables up to the shorter one.
void check_same_parameters(const Built& a, const Built& b) {
  REQUIRE(a.params.all().size() == b.params.all().size());
  for (size_t i = 0; i < a.params.all().size(); ++i) {
    const Param &p = a.params.all()[i], &q = b.params.all()[i];
    CAPTURE(p.name);
    const int64_t rows = std::min(p.value.size(0), q.value.size(0));
    CHECK(bitwise_equal(p.value.slice_first(0, rows), q.value.slice_first(0, rows)));
  }
}

}  // namespace

TEST_CASE("hugging face: the authors' form means their formulas") {
  const std::vector<int32_t> tokens = {3, 1, 26, 0, 3, 3, 9, 12, 25, 7, 7};
  for (const LanguageModelOptions& o : state_spaces_models()) {
    const TemporaryFolder folder;
    const Built b(o);
    b.disturb();
    write(folder / "m", b, Form::state_spaces);
    const Built c = read(folder / "m", DType::f64);
    const SafetensorsFile file(folder / "m/model.safetensors");
    const auto ours = to_host(c.model.forward(from_host({1, 11}, tokens)));
    const auto plain = PlainMamba2{file, c.model.options}.logits(tokens);
    REQUIRE(ours.size() == plain.size());
    CHECK(largest_difference(ours, plain) < 1e-12 * largest(plain));  // two orders of summation in f64
  }
}

TEST_CASE("hugging face: both forms give back every parameter, bit for bit") {
  const auto check_form = [](const LanguageModelOptions& o, Form form) {
    const TemporaryFolder folder;
    const Built b(o);
    b.disturb();
    write(folder / "m", b, form);
    const Built c = read(folder / "m");
    check_same_parameters(b, c);
    CHECK(hugging_face::config(c.model.options, form) == file_bytes(folder / "m/config.json"));
    write(folder / "again", c, form);
    CHECK(file_bytes(folder / "m/model.safetensors") == file_bytes(folder / "again/model.safetensors"));
    CHECK_THROWS_WITH(write(folder / "m", c, form),
                      ContainsSubstring("config.json: is there already"));
  };
  for (const LanguageModelOptions& o : state_spaces_models()) check_form(o, Form::state_spaces);
  LanguageModelOptions o = tiny();
  check_form(o, Form::transformers);
  o.tied = false;
  o.eps = o.mixer.eps = 1e-3;
  o.mixer.bias = true;
  o.mixer.dt_min = 0.01, o.mixer.dt_max = 0.5;
  check_form(o, Form::transformers);
  o.mixer.dt_max = std::numeric_limits<double>::infinity();
  check_form(o, Form::transformers);
  o.mixer.norm_groups = 1;
  check_form(o, Form::transformers);
}

TEST_CASE("hugging face: what a form cannot say is not written") {
  const TemporaryFolder folder;
  const auto refused = [&](LanguageModelOptions o, Form form, const std::string& why) {
    CHECK_THROWS_WITH(write(folder / "m", Built(o), form), ContainsSubstring(why));
    CHECK(!std::filesystem::exists(folder / "m"));
  };
  const auto models = state_spaces_models();
  refused(models[2], Form::transformers, "cannot say d_intermediate 128");
  refused(models[3], Form::transformers, "cannot say d_ssm 12 of 24 channels");
  refused(models[4], Form::transformers, "cannot say rms_norm = false");
  LanguageModelOptions o = tiny();
  o.mixer.norm_groups = 2;
  refused(o, Form::transformers, "cannot say norm_groups 2 with groups 3");
  o.mixer.norm_groups = 1;
  refused(o, Form::state_spaces, "cannot say norm_groups 1 with groups 3");
  o = tiny();
  o.eps = 1e-3;
  refused(o, Form::transformers, "cannot say eps 0.001 here and 1e-05 in the mixer");
  refused(o, Form::state_spaces, "cannot say eps 0.001");
  o = tiny();
  o.d_intermediate = 100;
  refused(o, Form::state_spaces, "d_intermediate 100, which it would round up to 128");
}

TEST_CASE("hugging face: a config.json is read as Python writes it; absent fields are the defaults of its kind") {
  const auto parse = [](const std::string& text) { return hugging_face::parse_config(text, "c"); };
  const LanguageModelOptions hf =
      parse(R"({"model_type": "mamba2", "time_step_limit": [0.0, Infinity], "_name": "an \"Infinity\" \\"})");
  CHECK(hf.vocabulary == 32768);
  CHECK(hf.table_rows() == 32768);
  CHECK(hf.layers == 64);
  CHECK(!hf.tied);
  CHECK(hf.mixer.d_model == 4096);
  CHECK(hf.mixer.groups == 8);
  CHECK(hf.mixer.dt_max == std::numeric_limits<double>::infinity());
  const std::string newer = R"({"model_type": "mamba2", "time_step_limit": [0.25, {"__float__": "Infinity"}]})";
  CHECK(parse(newer).mixer.dt_min == 0.25);
  CHECK(parse(newer).mixer.dt_max == std::numeric_limits<double>::infinity());

  const LanguageModelOptions authors = parse(
      R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}, "rms_norm": true,
          "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": true})");
  CHECK(authors.vocabulary == 50277);
  CHECK(authors.table_rows() == 50288);
  CHECK(authors.tied);
  CHECK(authors.mixer.groups == 1);
  CHECK(authors.mixer.d_state == 128);
  CHECK(authors.mixer.heads() == 24);
}

TEST_CASE("hugging face: the norm's groups come from the version that wrote config.json") {
  const auto norm_groups = [](const std::string& fields) {
    return hugging_face::parse_config(R"({"model_type":"mamba2")" + fields + "}", "c").mixer.norm_groups;
  };
  const auto of_version = [&](const std::string& v) { return norm_groups(R"(,"transformers_version":")" + v + '"'); };
  for (const char* v : {"4.39.0.dev0", "4.57.1", "5.9.0", "5.22.2", "5.3", "4.230.0"}) CHECK(of_version(v) == 1);
  for (const char* v : {"5.23.0", "5.23", "5.23.0rc1", "5.23.0.dev0", "5.100.2", "6.0.0", "10.0"})
    CHECK(of_version(v) == 8);
  CHECK(norm_groups("") == 1);
  CHECK(norm_groups(R"(,"transformers_version":null)") == 1);
  for (const char* v : {"", "main", "5", "5.", "-5.23", "5.x", "99999999999999999999.1"})
    CHECK_THROWS_WITH(of_version(v), ContainsSubstring("c: transformers_version is \"" + std::string(v) +
                                                       "\", not a version such as 5.23.0"));
  CHECK(norm_groups(R"(,"n_groups":1,"transformers_version":"main")") == 1);  // where it does not matter

  const auto written = [](int64_t groups, int64_t norm_groups) {
    LanguageModelOptions o = tiny();
    o.mixer.groups = groups, o.mixer.norm_groups = norm_groups;
    return hugging_face::config(o, Form::transformers);
  };
  for (const int64_t groups : {0, 3}) CHECK_THAT(written(3, groups), ContainsSubstring("_version\": \"5.23.0\""));
  CHECK_THAT(written(1, 1), ContainsSubstring("_version\": \"5.23.0\""));
  CHECK_THAT(written(3, 1), ContainsSubstring("_version\": \"5.22.2\""));
  CHECK(hugging_face::parse_config(written(3, 1), "c").mixer.norm_groups == 1);
  CHECK(hugging_face::parse_config(written(3, 0), "c").mixer.norm_groups == 3);
}

TEST_CASE("hugging face: a model that cannot be built is refused, and the field named") {
  const auto refused = [](const std::string& text, const std::string& why) {
    CAPTURE(text);
    CHECK_THROWS_WITH(hugging_face::parse_config(text, "config.json"),
                      ContainsSubstring("config.json: ") && ContainsSubstring(why));
  };
  const auto hf = [&](const std::string& field, const std::string& why) {
    refused(R"({"model_type":"mamba2",)" + field + "}", why);
  };
  refused("", "malformed");
  refused("{\"", "malformed");
  refused("{\"\\", "malformed");
  refused("{\"model_type\": Infinit}", "malformed");
  refused("{}", "model_type is none");
  refused(R"({"model_type":"llama"})", "model_type is llama, not mamba2");
  hf(R"("hidden_act":"gelu")", "hidden_act = \"gelu\"");
  hf(R"("num_heads":3)", "num_heads 3 x head_dim 64 is not expand 2 x hidden_size 4096");
  hf(R"("n_groups":3)", "cannot share 3 groups");
  hf(R"("vocab_size":0)", "vocab_size is 0");
  hf(R"("vocab_size":1.5)", "vocab_size is 1.5");
  hf(R"("vocab_size":"32")", "vocab_size is \"32\"");
  hf(R"("expand":18446744073709551615)", "expand is 1.8446744073709552e+19");
  hf(R"("use_bias":1)", "use_bias is 1");
  hf(R"("time_step_limit":[0.5,0.1])", "time_step_limit is [0.5,0.1], not in order");
  hf(R"("time_step_limit":[0.5])", "time_step_limit is [0.5]");
  hf(R"("time_step_limit":[NaN,1])", "time_step_limit has \"NaN\"");
  hf(R"("layer_norm_epsilon":"small")", "layer_norm_epsilon has \"small\"");
  hf(R"("transformers_version":5.23)", "transformers_version is 5.23, not a text");
  refused(R"({"d_model":64,"ssm_cfg":{}})", "ssm_cfg: layer = \"Mamba1\"");
  refused(R"({"d_model":64,"ssm_cfg":{"layer":"Mamba2","chunks":3}})", "ssm_cfg: chunks = 3 is not supported");
  refused(R"({"d_model":64,"attn_layer_idx":[1]})", "attn_layer_idx");
  refused(R"({"d_model":64,"rms_norm":false})", "rms_norm");
  refused(R"({"d_model":64,"heads":2})", "heads = 2");
}

TEST_CASE("hugging face: weights that do not fit are refused, and the tensor named") {
  const TemporaryFolder folder;
  const Built b(tiny());
  write(folder / "m", b, Form::transformers);
  const SafetensorsFile file(folder / "m/model.safetensors");
  std::vector<NamedTensor> whole;
  for (const auto& [name, entry] : file.tensors()) whole.push_back({name, entry.shape, file.read(name)});
  const auto refused = [&](const std::vector<NamedTensor>& tensors, const std::string& why) {
    write_safetensors(folder / "m/model.safetensors", tensors);
    CHECK_THROWS_WITH(hugging_face::read_weights(folder / "m", b.params, b.model),
                      ContainsSubstring("model.safetensors: ") && ContainsSubstring(why));
  };
  auto tensors = whole;
  const std::string kernel = "backbone.layers.1.mixer.conv1d.weight";
  const auto conv = std::ranges::find(tensors, kernel, &NamedTensor::name) - tensors.begin();
  NamedTensor& c = tensors[static_cast<size_t>(conv)];
  c.shape = {54, 3};
  refused(tensors, kernel + " has shape [54, 3], not [54, 1, 3]");
  tensors.erase(tensors.begin() + conv);
  refused(tensors, "has no tensor " + kernel + ", which the model has with shape [54, 1, 3]");
  tensors = whole;
  tensors.push_back({"backbone.layers.2.norm.weight", {12}, zeros({12})});
  refused(tensors, "holds the tensor backbone.layers.2.norm.weight [12], which the model has not");
  tensors = whole;
  tensors.push_back({"lm_head.weight", {27, 12}, zeros({27, 12})});
  refused(tensors, "lm_head.weight is not backbone.embeddings.weight");
  tensors.back().tensor = file.read("backbone.embeddings.weight");
  write_safetensors(folder / "m/model.safetensors", tensors);
  CHECK_NOTHROW(hugging_face::read_weights(folder / "m", b.params, b.model));
  CHECK_THROWS_WITH(hugging_face::read_options(folder.path()), ContainsSubstring("config.json: cannot be read"));
}

TEST_CASE("hugging face: weights in several files are read by their index") {
  const TemporaryFolder folder;
  const Built b(tiny());
  b.disturb();
  write(folder / "m", b, Form::state_spaces);
  std::vector<NamedTensor> parts[2];
  std::string map;
  {
    const SafetensorsFile file(folder / "m/model.safetensors");
    for (const auto& [name, entry] : file.tensors()) {
      const size_t part = (parts[0].size() + parts[1].size()) % 2;
      parts[part].push_back({name, entry.shape, file.read(name)});
      map += (map.empty() ? "" : ",") + ("\"" + name + "\":\"part-" + std::to_string(part) + ".safetensors\"");
    }
  }
  std::filesystem::remove(folder / "m/model.safetensors");
  for (const size_t part : {0, 1})
    write_safetensors(folder / ("m/part-" + std::to_string(part) + ".safetensors"), parts[part]);
  const auto index = [&](const std::string& text) { folder.write("m/model.safetensors.index.json", text); };
  index("{\"weight_map\":{" + map + "}}");
  check_same_parameters(b, read(folder / "m"));

  index("{\"weight_map\":{" + map + ",\"w\":\"part-0.safetensors\"}}");
  CHECK_THROWS_WITH(read(folder / "m"), ContainsSubstring("w is not in part-0.safetensors"));
  index(R"({"weight_map":{"w":"../part"}})");
  CHECK_THROWS_WITH(read(folder / "m"), ContainsSubstring("\"../part\", which is no name of a file"));
  index(R"({"weight":{}})");
  CHECK_THROWS_WITH(read(folder / "m"), ContainsSubstring("index.json: malformed"));
  index("{\"weight_map\":{" + map + "}}");
  parts[1].push_back(parts[0][0]);
  write_safetensors(folder / "m/part-1.safetensors", parts[1]);
  CHECK_THROWS_WITH(read(folder / "m"), ContainsSubstring(parts[0][0].name + " is in another file too"));
}
