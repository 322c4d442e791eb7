#include "adder/data/hugging_face.h"

#include "adder/core/error.h"
#include "adder/core/json.h"
#include "adder/data/file.h"
#include "adder/data/safetensors.h"

#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

namespace adder::hugging_face {
namespace {

namespace fs = std::filesystem;

constexpr const char* weights_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";

std::string in(const std::string& folder, const std::string& name) { return (fs::path(folder) / name).string(); }

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  check(file.good() || file.eof(), "{}: cannot be read", path);
  check(!file.bad() && !text.empty(), "{}: is empty or cannot be read", path);
  return text;
}

// One mixer's tensors under their names in both forms.
void add_mixer(std::vector<NamedTensor>& to, const std::string& name, const layers::Mamba2& m) {
  const auto add = [&](const char* part, const Tensor& t) {
    if (t) to.push_back({name + part, t.shape(), t});
  };
  add("in_proj.weight", m.in_proj);
  add("in_proj.bias", m.in_bias);
  to.push_back({name + "conv1d.weight", {m.conv.channels(), 1, m.conv.width()}, m.conv.weight});
  add("conv1d.bias", m.conv.bias);
  add("dt_bias", m.dt_bias);
  add("A_log", m.A_log);
  to.push_back({name + "D", {m.D.count()}, m.D});
  add("norm.weight", m.norm);
  add("out_proj.weight", m.out_proj.weight);
  add("out_proj.bias", m.out_proj.bias);
}

const char* embedding_name(Form form) {
  return form == Form::transformers ? "backbone.embeddings.weight" : "backbone.embedding.weight";
}

// The master weights of a model under their names and shapes in the files.
std::vector<NamedTensor> named_tensors(const Params& params, const layers::LanguageModel& model, Form form) {
  std::vector<NamedTensor> all;
  const auto add = [&](const std::string& name, const Tensor& t) { all.push_back({name, t.shape(), t}); };
  // transformers has no padding of the vocabulary and would predict it.
  const int64_t rows = form == Form::transformers ? model.options.vocabulary : model.options.table_rows();
  add(embedding_name(form), model.embedding.weight.slice_first(0, rows));
  for (size_t i = 0; i < model.blocks.size(); ++i) {
    const layers::Block& block = model.blocks[i];
    const std::string name = fmt::format("backbone.layers.{}.", i);
    add(name + "norm.weight", block.norm.weight);
    add_mixer(all, name + "mixer.", block.mixer);
    if (!block.mlp) continue;
    add(name + "norm2.weight", block.mlp_norm->weight);
    add(name + "mlp.fc1.weight", block.mlp->in.weight);
    add(name + "mlp.fc2.weight", block.mlp->out.weight);
  }
  add("backbone.norm_f.weight", model.norm.weight);
  if (!model.options.tied) add("lm_head.weight", model.head.slice_first(0, rows));
  for (NamedTensor& t : all) t.tensor = params.master(t.tensor);
  return all;
}

/// The tensors of a model's files, by name.
class Weights {
 public:
  explicit Weights(const std::string& folder) : path_(in(folder, index_name)) {
    const bool sharded = fs::exists(path_);
    if (sharded) add_shards(folder);
    else add(path_ = in(folder, weights_name));
  }

  const std::string& path() const { return path_; }
  bool has(const std::string& name) const { return where_.contains(name); }
  void read(const NamedTensor& t) const {
    check(has(t.name), "{}: has no tensor {}, which the model has with shape {}", path_, t.name, to_string(t.shape));
    where_.at(t.name)->read(t.name, t.tensor.reshape(t.shape));
  }
  /// Throws if there are tensors without one of these names.
  void only(const std::set<std::string>& names) const {
    for (const auto& [name, file] : where_)
      check(names.contains(name), "{}: holds the tensor {} {}, which the model has not", file->path(), name,
            to_string(file->tensors().at(name).shape));
  }

 private:
  void add(const std::string& path) {
    const SafetensorsFile& file = files_.emplace_back(path);
    for (const auto& [name, entry] : file.tensors())
      check(where_.emplace(name, &file).second, "{}: {} is in another file too", path, name);
  }

  // The files that the index names, each of which holds what the index says it does.
  void add_shards(const std::string& folder) {
    std::map<std::string, std::string> map;  // tensor -> file
    try {
      const Json index = Json::parse(read_text(path_));
      for (const auto& [tensor, file] : index.at("weight_map").fields()) map[tensor] = file.string();
    } catch (const Error& error) {
      fail("{}: malformed ({})", path_, error.what());
    }
    std::set<std::string> names;
    for (const auto& [tensor, file] : map) {
      check(fs::path(file).filename() == file, "{}: {} lies in \"{}\", which is no name of a file", path_, tensor,
            file);
      names.insert(file);
    }
    for (const std::string& name : names) add(in(folder, name));
    for (const auto& [tensor, file] : map)
      check(has(tensor) && where_.at(tensor)->path() == in(folder, file), "{}: {} is not in {}", path_, tensor, file);
  }

  std::string path_;  // of the file, or of the index
  std::deque<SafetensorsFile> files_;
  std::map<std::string, const SafetensorsFile*> where_;
};

}  // namespace

layers::LanguageModelOptions read_options(const std::string& folder) {
  const std::string path = in(folder, "config.json");
  return parse_config(read_text(path), path);
}

void read_weights(const std::string& folder, const Params& params, const layers::LanguageModel& model) {
  const Weights weights(folder);
  // Either name of the embedding may stand beside either config.json.
  const Form form = weights.has(embedding_name(Form::state_spaces)) ? Form::state_spaces : Form::transformers;
  const auto tensors = named_tensors(params, model, form);
  std::set<std::string> names;
  for (const NamedTensor& t : tensors) {
    weights.read(t);
    names.insert(t.name);
  }
  const NamedTensor& table = tensors.front();
  if (model.options.tied && weights.has("lm_head.weight")) {
    const Tensor head(table.shape, table.tensor.dtype());
    weights.read({"lm_head.weight", table.shape, head});
    check(bitwise_equal(head, table.tensor), "{}: lm_head.weight is not {}, though config.json ties them",
          weights.path(), table.name);
    names.insert("lm_head.weight");
  }
  weights.only(names);
  params.round();
}

void write(const std::string& folder, const Params& params, const layers::LanguageModel& model, Form form) {
  const std::string text = config(model.options, form), path = in(folder, "config.json");
  std::error_code error;
  fs::create_directories(folder, error);
  check(!error, "{}: cannot be made ({})", folder, error.message());
  for (const std::string& there : {path, in(folder, weights_name), in(folder, index_name)})
    check(!fs::exists(there), "{}: is there already", there);
  write_safetensors(in(folder, weights_name), named_tensors(params, model, form), {{"format", "pt"}});
  OutputFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace adder::hugging_face
