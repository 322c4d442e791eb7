#include "adder/distributed/stop.h"

#include "adder/core/error.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <charconv>
#include <cmath>
#include <filesystem>

namespace adder {
namespace {

// A signal handler can reach nothing but a static.
std::atomic<int> received = 0;
static_assert(std::atomic<int>::is_always_lock_free);
constexpr std::array signals{SIGINT, SIGTERM, SIGUSR1};
std::array<struct sigaction, signals.size()> before;

extern "C" void note_signal(int signal) {
  const int earlier = received.exchange(signal);
  if (signal != SIGINT) return;
  if (earlier != 0) _exit(130);
  constexpr std::string_view text = "\nstopping after this step, then saving; Ctrl-C again leaves at once\n";
  [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace

Stop::Stop(std::string file, std::chrono::duration<double> limit) : file_(std::move(file)), limit_(limit) {
  std::error_code ignored;
  if (!file_.empty()) std::filesystem::remove(file_, ignored);
  received = 0;
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < signals.size(); ++i) sigaction(signals[i], &action, &before[i]);
}

Stop::~Stop() {
  for (size_t i = 0; i < signals.size(); ++i) sigaction(signals[i], &before[i], nullptr);
}

StopCause Stop::cause() {
  if (found_ != StopCause::none) return found_;
  switch (received.load()) {
    case SIGINT: return found_ = StopCause::interrupt;
    case SIGTERM: return found_ = StopCause::terminate;
    case SIGUSR1: return found_ = StopCause::user_signal;
    default: break;
  }
  const auto now = Clock::now();
  if (!file_.empty() && now >= next_look_) {
    next_look_ = now + std::chrono::seconds(1);
    std::error_code ignored;
    if (std::filesystem::remove(file_, ignored)) return found_ = StopCause::file;
  }
  if (limit_.count() > 0 && now - start_ >= limit_) return found_ = StopCause::time_limit;
  return StopCause::none;
}

const char* name(StopCause cause) {
  switch (cause) {
    case StopCause::none: break;
    case StopCause::time_limit: return "the time limit";
    case StopCause::file: return "the stop file";
    case StopCause::user_signal: return "SIGUSR1";
    case StopCause::terminate: return "SIGTERM";
    case StopCause::interrupt: return "Ctrl-C";
  }
  return "nothing";
}

std::chrono::duration<double> parse_duration(std::string_view text) {
  double seconds = 0;
  bool good = !text.empty();
  for (std::string_view rest = text; good && !rest.empty();) {
    double value = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value, std::chars_format::fixed);
    const bool plain = rest.size() == text.size() && end == rest.data() + rest.size();  // no unit anywhere: minutes
    const char unit = plain ? 'm' : end == rest.data() + rest.size() ? '?' : *end;
    const double scale = unit == 's' ? 1 : unit == 'm' ? 60 : unit == 'h' ? 3600 : unit == 'd' ? 86400 : 0;
    good = error == std::errc() && std::isfinite(value) && value >= 0 && scale > 0;
    seconds += value * scale;
    if (good) rest.remove_prefix(static_cast<size_t>(end - rest.data()) + (plain ? 0 : 1));
  }
  check(good, "\"{}\" is not a time: write minutes (90) or units (1h30m, 45s, 2d)", text);
  return std::chrono::duration<double>(seconds);
}

std::string to_text(std::chrono::duration<double> time) {
  const auto seconds = static_cast<int64_t>(std::llround(time.count()));
  if (seconds >= 86400) return fmt::format("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600);
  if (seconds >= 3600) return fmt::format("{}h{:02}m", seconds / 3600, seconds % 3600 / 60);
  if (seconds >= 60) return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
  return fmt::format("{}s", seconds);
}

}  // namespace adder
