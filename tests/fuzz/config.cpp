// Hugging Face's config.json: what can be read and written is the same when it is read again.
#include "adder/data/hugging_face.h"
#include "adder/tests/fuzz/fuzz.h"

using namespace adder;
using namespace adder::hugging_face;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::accepts([&] {
    const std::string given(reinterpret_cast<const char*>(data), size);
    const layers::LanguageModelOptions options = parse_config(given, "config.json");
    for (const Form form : {Form::transformers, Form::state_spaces}) {
      std::string text;
      if (!fuzz::accepts([&] { text = config(options, form); })) continue;
      fuzz::must(config(parse_config(text, "config.json"), form) == text);
    }
  });
  return 0;
}
