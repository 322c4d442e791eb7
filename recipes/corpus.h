// From text to a training and a validation shard, once: found again, they are used as they are.
#pragma once

#include "adder/core/error.h"
#include "adder/data/file.h"
#include "adder/data/machine_text.h"
#include "adder/data/token_shard.h"
#include "adder/data/tokenize.h"
#include "adder/distributed/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace adder {

struct Corpus {
  std::string train, validation;  // shards
};

/// The shards of `folder`, made there if they are missing: from `text` (folders and files, data/text.h), or, without
/// any, from at most `machine_text` MB of text found on this machine. One rank makes them, the others wait. Shards of
/// other text, or of more or less of this machine's, are refused, or made again if `anew`.
inline Corpus prepare_corpus(const std::string& folder, std::vector<std::string> text, double validation_share,
                             double machine_text, bool anew, Run& run) {
  const Corpus corpus{folder + "/train.h5", folder + "/validation.h5"};
  const std::string origin = text.empty() ? "this machine's text" : fmt::format("{}", fmt::join(text, " ")),
                    limit = text.empty() ? fmt::format(", at most {} MB", machine_text) : "",
                    made_from = fmt::format("{} (validation share {}){}", origin, validation_share, limit),
                    note = folder + "/made_from";
  if (std::filesystem::exists(corpus.train) && std::filesystem::exists(corpus.validation)) {
    std::string before;
    const bool other = [&] {
      std::ifstream file(note);
      return std::getline(file, before) && !made_from.starts_with(before);  // older notes say nothing of a limit
    }();
    check(!other || anew,
          "{} was made from {}, not from {}; choose another folder with --data, or --fresh to start anew", folder,
          before, made_from);
    if (!other) return corpus;
  }
  run.mesh().world.barrier();  // every rank has seen that they are missing
  if (run.mesh().world.rank() != 0) {
    run.mesh().world.barrier();
    return corpus;
  }
  const auto say = [&](const std::string& line) { run.say(line); };
  std::filesystem::create_directories(folder);
  for (const std::string& shard : {corpus.train, corpus.validation}) std::filesystem::remove(shard);
  OutputFile file(note);
  file.write(made_from + "\n");
  file.commit();
  if (text.empty()) {
    text = {folder + "/text.jsonl.zst"};
    say("gathering text from this machine");
    const std::string repository = ADDER_SOURCE;  // where this was built, if it is still there
    const auto bytes = static_cast<int64_t>(std::min(machine_text, 1e9) * 1e6);
    for (const SourceReport& source :
         write_machine_text(text[0], {.repository = std::filesystem::exists(repository) ? repository : "",
                                      .wanted_bytes = std::min<int64_t>(bytes * 9 / 10, 8'000'000),
                                      .most_bytes = bytes,
                                      .package_bytes = std::max<int64_t>(bytes / 5, 2'000'000)}))
      say("  " + source.line());
  }
  int64_t next = 64'000'000;
  const auto progress = [&](const TextProgress& p) {
    if (p.read_bytes < next) return;
    next += 64'000'000;
    say(fmt::format("  {:.0f} MB of {:.0f} MB read", static_cast<double>(p.read_bytes) / 1e6,
                    static_cast<double>(p.total_bytes) / 1e6));
  };
  const TokenizeReport report =
      tokenize(text, corpus.train, corpus.validation, {.validation = validation_share}, progress);
  say(fmt::format("{}: {:.2f} MB of text, {} documents to train on, {} to validate", folder,
                  static_cast<double>(report.text.text_bytes) / 1e6, report.train_documents,
                  report.validation_documents));
  run.mesh().world.barrier();
  return corpus;
}

}  // namespace adder
