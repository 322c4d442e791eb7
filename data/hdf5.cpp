#include "adder/data/hdf5.h"

#include <hdf5.h>

#include <type_traits>

namespace adder::hdf5 {

static_assert(std::is_same_v<hid_t, int64_t> && std::is_same_v<herr_t, int>);

void quiet() { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

Handle without_locks() {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access, false, true);
  return access;
}

int64_t unsigned_type(int64_t bytes) {
  switch (bytes) {
    case 1: return H5T_STD_U8LE;
    case 2: return H5T_STD_U16LE;
    case 4: return H5T_STD_U32LE;
    default: return H5T_STD_U64LE;
  }
}

}  // namespace adder::hdf5
