# The CUDA backend is built where it is wanted and nvcc is found; ADDER_CUDA says so from here on.
if(ADDER_CUDA)
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(ENV{CUDACXX} /usr/local/cuda/bin/nvcc)  # where NVIDIA's packages put it, seldom on the path
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "CUDA: no nvcc here, so this build runs on the CPU")
    set(ADDER_CUDA OFF)
  endif()
endif()
if(NOT ADDER_CUDA)
  return()
endif()

# One architecture: the machine's own, else Hopper. "90a-real" makes machine code alone and lets kernels use wgmma; the
# shorthand -arch=sm_90a would add a pass that rejects it.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capability ERROR_QUIET RESULT_VARIABLE status)
  set(architecture 90a-real)
  if(status EQUAL 0 AND capability MATCHES "^([0-9]+)\\.([0-9]+)" AND NOT CMAKE_MATCH_0 STREQUAL "9.0")
    set(architecture ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${architecture} CACHE STRING "GPU architectures")
endif()
if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25.1 does not know that nvcc has it
endif()
# constexpr functions (core/random.h) serve device code as well; line numbers for profiler and sanitizer cost nothing.
set(ADDER_CUDA_FLAGS --expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall,-Wextra)
