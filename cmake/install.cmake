# cmake --install puts the library, the headers (include/adder/...) and the files of find_package(adder) in place.
include(CMakePackageConfigHelpers)
set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/adder)
set(version_file ${CMAKE_CURRENT_BINARY_DIR}/adderConfigVersion.cmake)
write_basic_package_version_file(${version_file} COMPATIBILITY SameMinorVersion)

install(TARGETS adder EXPORT adder_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${folders} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/adder FILES_MATCHING PATTERN "*.h" PATTERN "*.cuh")
install(EXPORT adder_targets NAMESPACE adder:: DESTINATION ${config_folder})
configure_file(cmake/adderConfig.cmake.in adderConfig.cmake @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/adderConfig.cmake cmake/dependencies.cmake ${version_file}
  DESTINATION ${config_folder})
