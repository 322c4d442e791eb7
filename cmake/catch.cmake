# Catch2 2 (Debian 12: one header) or Catch2 3 (Ubuntu 24.04: a library); tests/catch.h hides the difference.
find_package(Catch2 REQUIRED)
string(REGEX MATCH "^[0-9]+" ADDER_CATCH_MAJOR "${Catch2_VERSION}")
set(ADDER_CATCH Catch2::Catch2)
if(ADDER_CATCH_MAJOR LESS 3)
  set(ADDER_CATCH_STRICT -w NoTests)  # a test file without a test fails; 3 does so by itself
endif()
