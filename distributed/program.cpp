#include "adder/distributed/program.h"

#include <cstdio>
#include <new>

namespace adder {

int exit_status() noexcept {
  try {
    throw;
  } catch (const HelpShown& help) {
    std::fputs(help.text.c_str(), stdout);
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fputs("error: out of memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  } catch (...) {
    std::fputs("error: something that is no exception of the standard library was thrown\n", stderr);
  }
  return 1;
}

}  // namespace adder
