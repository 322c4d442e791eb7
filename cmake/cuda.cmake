# Whether the CUDA backend is built: with ADDER_CUDA=AUTO, where nvcc, its libraries and the machine's GPU, if it has
# one, are fit for it. What is not ends the configuration only if ADDER_CUDA was ON.
set(wanted ${ADDER_CUDA})
set(ADDER_CUDA OFF)
if(NOT wanted AND NOT wanted STREQUAL AUTO)
  return()
endif()

macro(no_cuda reason)
  unset(CMAKE_CUDA_COMPILER CACHE)  # the next configuration looks again
  if(NOT wanted STREQUAL AUTO)
    message(FATAL_ERROR "ADDER_CUDA is ${wanted}, but ${reason}")
  endif()
  message(STATUS "CUDA: ${reason}, so this build runs on the CPU")
  return()
endmacro()

# One architecture: the machine's own, else Hopper. "90a-real" makes machine code alone and lets kernels use wgmma; the
# shorthand -arch=sm_90a would add a pass that rejects it.
set(architectures ${CMAKE_CUDA_ARCHITECTURES})
if(NOT architectures)
  set(architectures 90a-real)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capability ERROR_QUIET RESULT_VARIABLE status)
  if(status EQUAL 0 AND capability MATCHES "^([0-9]+)\\.([0-9]+)" AND NOT CMAKE_MATCH_0 STREQUAL "9.0")
    set(architectures ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real)
    if(CMAKE_MATCH_0 VERSION_LESS 8.0)
      no_cuda("the GPU here has compute capability ${CMAKE_MATCH_0}, not 8.0 or higher")
    endif()
  endif()
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
  set(ENV{CUDACXX} /usr/local/cuda/bin/nvcc)  # where NVIDIA's packages put it, seldom on the path
endif()
set(ENV{CUDAARCHS} "${architectures}")  # the check compiles for them
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  no_cuda("there is no nvcc here that compiles a test for ${architectures}")
endif()
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE version ERROR_QUIET)
if(NOT version MATCHES "release ([0-9]+\\.[0-9]+)" OR CMAKE_MATCH_1 VERSION_LESS 12)
  no_cuda("${CMAKE_CUDA_COMPILER} is not nvcc 12 or newer")
endif()
find_package(CUDAToolkit QUIET)
foreach(library cudart cublasLt nvtx3)
  if(NOT TARGET CUDA::${library})
    no_cuda("the CUDA toolkit here lacks ${library}")
  endif()
endforeach()

set(ADDER_CUDA ON)
set(CMAKE_CUDA_ARCHITECTURES ${architectures} CACHE STRING "GPU architectures")
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
