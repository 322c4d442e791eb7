#include "adder/distributed/progress.h"

#include "adder/core/error.h"
#include "adder/distributed/environment.h"
#include "adder/distributed/stop.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

namespace adder {
namespace {

size_t columns(std::FILE* terminal) {
  winsize size{};
  return ioctl(fileno(terminal), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// Whether someone watches. mpirun gives each process a terminal of its own, whatever it writes to itself: then what
// counts is the parent's output, if it can be seen.
bool watched(std::FILE* to) {
  if (isatty(fileno(to)) != 1) return false;
  if (!launched()) return true;
  std::error_code ignored;
  const std::string parent = std::filesystem::read_symlink(fmt::format("/proc/{}/fd/1", getppid()), ignored).string();
  return parent.starts_with("/dev/pts/") || parent.starts_with("/dev/tty");
}

std::string rate(double per_second) {
  if (per_second >= 1e6) return fmt::format("{:.2f}M", per_second / 1e6);
  if (per_second >= 1e4) return fmt::format("{:.1f}k", per_second / 1e3);
  return fmt::format("{:.0f}", per_second);
}

}  // namespace

std::string grouped(int64_t number) {
  std::string digits = fmt::format("{}", number);
  for (auto place = static_cast<int64_t>(digits.size()) - 3; place > (number < 0); place -= 3)
    digits.insert(digits.begin() + place, ',');
  return digits;
}

std::string to_text(const Standing& s) {
  std::string text = fmt::format("step {}/{}  loss {:.4f}", grouped(s.step), grouped(s.steps), s.loss);
  if (!std::isnan(s.grad_norm)) text += fmt::format("  grad norm {:.3g}", s.grad_norm);
  if (!std::isnan(s.learning_rate)) text += fmt::format("  lr {:.2e}", s.learning_rate);
  if (!std::isnan(s.tokens_per_second)) text += fmt::format("  {} tokens/s", rate(s.tokens_per_second));
  if (!std::isnan(s.utilisation)) text += fmt::format(" ({:.1f} % MFU)", 100 * s.utilisation);
  if (!std::isnan(s.seconds_left)) text += "  " + to_text(std::chrono::duration<double>(s.seconds_left)) + " left";
  return text;
}

std::string to_text(Standing s, size_t columns) {
  for (double Standing::*const field : {&Standing::learning_rate, &Standing::grad_norm, &Standing::utilisation})
    if (to_text(s).size() > columns) s.*field = Standing::unknown;
  return to_text(s);
}

void Pace::add(double seconds) {
  const double keep = std::exp(-seconds / 30);
  seconds_ = seconds_ * keep + seconds;
  weight_ = weight_ * keep + 1;
}

Progress::Progress(std::FILE* to) : to_(to), terminal_(watched(to)) {}

Progress::~Progress() {
  if (open_) std::fputc('\n', to_);
  std::fflush(to_);
}

void Progress::show(const Standing& standing) {
  using namespace std::chrono;
  const auto now = steady_clock::now();
  const bool last = standing.step >= standing.steps;
  if (now < next_ && !last) return;
  next_ = now + (terminal_ ? milliseconds(100) : milliseconds(10'000));
  std::string line;
  if (terminal_) {
    clear();
    const size_t most = columns(to_) - 1;  // a full line would wrap, and \r return to its second half
    line = to_text(standing, most);
    line.resize(std::min(line.size(), most));
  } else {
    line = to_text(standing) + '\n';
  }
  std::fputs(line.c_str(), to_);
  std::fflush(to_);
  open_ = terminal_;
}

void Progress::say(std::string_view line) {
  clear();
  std::fwrite(line.data(), 1, line.size(), to_);
  std::fputc('\n', to_);
  std::fflush(to_);
}

void Progress::clear() {
  if (open_) std::fputs("\r\x1b[K", to_);
  open_ = false;
}

}  // namespace adder
