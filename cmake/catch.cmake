# Catch2 2 (Debian 12: one header) or Catch2 3 (Ubuntu 24.04: a library); tests/catch.h hides the difference.
find_package(Catch2 REQUIRED)
string(REGEX MATCH "^[0-9]+" ADDER_CATCH_MAJOR "${Catch2_VERSION}")
set(ADDER_CATCH Catch2::Catch2)
