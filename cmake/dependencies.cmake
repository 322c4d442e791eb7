# Everything adder links, all from the distribution. Shared by the build and by find_package(adder).
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(fmt REQUIRED)
find_package(ZLIB REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
set(MPI_CXX_SKIP_MPICXX ON)  # the C interface: the one for C++ is gone from newer MPIs
find_package(MPI REQUIRED COMPONENTS CXX)
if(ADDER_CUDA)
  find_package(CUDAToolkit REQUIRED)
  # NCCL, found and not asked for: without it this is a build for a single GPU. An installed adder says what it needs.
  find_path(ADDER_NCCL_INCLUDE nccl.h HINTS ENV NCCL_ROOT ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
  find_library(ADDER_NCCL nccl HINTS ENV NCCL_ROOT ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
  if(ADDER_NCCL_INCLUDE AND ADDER_NCCL)
    set(ADDER_WITH_NCCL ON)
  elseif(ADDER_WITH_NCCL)
    message(FATAL_ERROR "this adder was built with NCCL, which is not found here")
  endif()
endif()

# OpenBLAS built on OpenMP shares our thread pool: a product inside a parallel region stays on its thread.
find_library(ADDER_OPENBLAS openblas PATH_SUFFIXES openblas-openmp REQUIRED)
find_path(ADDER_CBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas-openmp openblas REQUIRED)
# The C library of HDF5 and nothing else: FindHDF5 wants a C compiler of every consumer and links curl and crypto.
find_library(ADDER_HDF5 NAMES hdf5_serial hdf5 HINTS ENV HDF5_ROOT PATH_SUFFIXES lib hdf5/serial REQUIRED)
find_path(ADDER_HDF5_INCLUDE hdf5.h HINTS ENV HDF5_ROOT PATH_SUFFIXES include hdf5/serial REQUIRED)
find_library(ADDER_ZSTD zstd REQUIRED)

# Imported, so that an installed adder names it and each consumer finds the libraries of its own machine.
if(NOT TARGET adder::third_party)
  add_library(adder::third_party INTERFACE IMPORTED GLOBAL)
  target_include_directories(adder::third_party INTERFACE ${ADDER_CBLAS_INCLUDE} ${ADDER_HDF5_INCLUDE})
  target_link_libraries(adder::third_party INTERFACE ${ADDER_OPENBLAS} ${ADDER_HDF5} ${ADDER_ZSTD}
    ZLIB::ZLIB CLI11::CLI11 nlohmann_json::nlohmann_json MPI::MPI_CXX Threads::Threads)
  if(ADDER_WITH_NCCL)
    target_include_directories(adder::third_party INTERFACE ${ADDER_NCCL_INCLUDE})
    target_link_libraries(adder::third_party INTERFACE ${ADDER_NCCL})
  endif()
endif()
