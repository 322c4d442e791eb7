# Found by find_package(adder): link adder::adder, include "adder/core/error.h".
include(${CMAKE_CURRENT_LIST_DIR}/dependencies.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/adder_targets.cmake)
