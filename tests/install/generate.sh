#!/usr/bin/env bash
# Writes what finds an installed header into the folder given: widenet.pc for pkg-config, and a
# package for CMake. PREFIX is where the header will be.
set -eu

folder=$1
case $PREFIX in
  /*) prefix=$PREFIX ;;
  *)  prefix=$PWD/$PREFIX ;;
esac
version=$(sed -n 's/^#define WIDENET_VERSION "\(.*\)"$/\1/p' widenet.hpp)
[ -n "$version" ] || { echo "generate.sh: widenet.hpp must define WIDENET_VERSION" >&2; exit 1; }

cat > "$folder/widenet.pc" <<TEXT
# Without threads: pkg-config --define-variable=openmp= --cflags --libs widenet
# -ffp-contract=off gives results the same bits with every compiler and instruction set.
prefix=$prefix
includedir=\${prefix}/include
openmp=-fopenmp

Name: widenet
Description: Mixture-of-experts transformers in one C++17 header
Version: $version
Cflags: -I\${includedir} -ffp-contract=off \${openmp}
Libs: \${openmp}
TEXT

cat > "$folder/widenetConfig.cmake" <<'TEXT'
# find_package(widenet) brings the target widenet::widenet: the header, C++17, the same bits with
# every compiler (-ffp-contract=off), and OpenMP where the compiler has it.
if(NOT TARGET widenet::widenet)
  get_filename_component(widenet_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
  add_library(widenet::widenet INTERFACE IMPORTED)
  target_include_directories(widenet::widenet INTERFACE "${widenet_prefix}/include")
  target_compile_features(widenet::widenet INTERFACE cxx_std_17)
  target_compile_options(widenet::widenet INTERFACE
    "$<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-ffp-contract=off>")
  find_package(OpenMP QUIET)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(widenet::widenet INTERFACE OpenMP::OpenMP_CXX)
  endif()
  unset(widenet_prefix)
endif()
TEXT

# Versions agree if the leading number does; before 1.0 the second one too.
cat > "$folder/widenetConfigVersion.cmake" <<TEXT
set(PACKAGE_VERSION "$version")
if("\${PACKAGE_FIND_VERSION}" VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
elseif("$version" VERSION_LESS "1.0")
  if("\${PACKAGE_FIND_VERSION_MAJOR}.\${PACKAGE_FIND_VERSION_MINOR}" STREQUAL "${version%.*}")
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
  endif()
elseif("\${PACKAGE_FIND_VERSION_MAJOR}" STREQUAL "${version%%.*}")
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if("\${PACKAGE_FIND_VERSION}" VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
TEXT
