# cmake --install puts the library, the headers (include/adder/...) and the files of find_package(adder) in place.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS adder adder_third_party EXPORT adder_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
foreach(folder ${folders})
  install(DIRECTORY ${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/adder FILES_MATCHING PATTERN "*.h")
endforeach()
set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/adder)
install(EXPORT adder_targets NAMESPACE adder:: DESTINATION ${config_folder} FILE adder_targets.cmake)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/adderConfig.cmake
  "include(\${CMAKE_CURRENT_LIST_DIR}/dependencies.cmake)\ninclude(\${CMAKE_CURRENT_LIST_DIR}/adder_targets.cmake)\n")
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/adderConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/adderConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/adderConfigVersion.cmake
  cmake/dependencies.cmake DESTINATION ${config_folder})
