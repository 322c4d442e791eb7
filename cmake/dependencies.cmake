# Everything adder links, all from the distribution. Shared by the build and by find_package(adder).
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(fmt REQUIRED)
find_package(ZLIB REQUIRED)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)

# OpenBLAS built on OpenMP shares our thread pool: a product inside a parallel region stays on its thread.
find_library(ADDER_OPENBLAS NAMES openblas PATH_SUFFIXES openblas-openmp REQUIRED)
find_path(ADDER_CBLAS_INCLUDE cblas-openblas.h NAMES cblas.h PATH_SUFFIXES openblas-openmp openblas REQUIRED)
find_library(ADDER_ZSTD NAMES zstd REQUIRED)
if(NOT TARGET adder_third_party)
  add_library(adder_third_party INTERFACE)
  target_include_directories(adder_third_party SYSTEM INTERFACE ${ADDER_CBLAS_INCLUDE} ${HDF5_C_INCLUDE_DIRS})
  target_link_libraries(adder_third_party INTERFACE ${ADDER_OPENBLAS} ${HDF5_C_LIBRARIES} ${ADDER_ZSTD}
    ZLIB::ZLIB CLI11::CLI11 nlohmann_json::nlohmann_json Threads::Threads)
endif()
set(ADDER_PRIVATE_LIBRARIES adder_third_party)
