// Stop: why a run should end before its last step. A signal, a file named `stop` in the run folder, or a time limit.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

namespace adder {

/// In the order of precedence: over several ranks the largest counts.
enum class StopCause : int { none, time_limit, file, user_signal, terminate, interrupt };

/// Watches for a reason to stop. While one lives, SIGINT, SIGTERM and SIGUSR1 only set a flag; a SIGINT that follows
/// any of them leaves the process at once with status 130. One at a time.
class Stop {
 public:
  using Clock = std::chrono::steady_clock;

  /// An empty `file` or a limit of zero: not watched. A stop file that is there already is an order given to an earlier
  /// run: it is removed.
  Stop(std::string file, std::chrono::duration<double> limit);
  ~Stop();
  Stop(const Stop&) = delete;
  Stop& operator=(const Stop&) = delete;

  /// The reason so far. Looks for the file at most once a second, and removes it when found.
  StopCause cause();

 private:
  std::string file_;
  std::chrono::duration<double> limit_;
  Clock::time_point start_ = Clock::now(), next_look_ = start_;
  StopCause found_ = StopCause::none;
};

/// "Ctrl-C", "SIGTERM", "the time limit", ...
const char* name(StopCause cause);

/// A time in minutes ("90") or with units ("1h30m", "45s", "2d", "1.5h"). Throws on anything else.
std::chrono::duration<double> parse_duration(std::string_view text);
/// "1h12m", "3m05s", "42s"
std::string to_text(std::chrono::duration<double> time);

}  // namespace adder
