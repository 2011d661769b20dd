#!/usr/bin/env bash
# Installs into build/ and builds the consumer beside this script with pkg-config and with CMake.
set -u

here=tests/install
prefix=$PWD/build/install/prefix
work=build/install/work
rm -rf "$prefix" "$work" build/install/staged
mkdir -p "$work"
failed=0

# check NAME EXPECTED COMMAND...: what the command prints must be as expected.
check() {
  local name=$1 expected=$2 printed
  shift 2
  printed=$("$@" 2>&1)
  if [ "$?" = 0 ] && [ "$printed" = "$expected" ]; then
    echo "ok      $name"
  else
    printf 'FAILED  %s\nexpected: %s\ngot:      %s\n' "$name" "$expected" "$printed"
    failed=$((failed + 1))
  fi
}

$MAKE install PREFIX="$prefix" > "$work/install.log" 2>&1 ||
  { cat "$work/install.log"; echo "FAILED  make install"; exit 1; }
version=$(sed -n 's/^#define WIDENET_VERSION "\(.*\)"$/\1/p' widenet.hpp)
export PKG_CONFIG_PATH=$prefix/share/pkgconfig
eigen="-isystem $EIGEN_DIR"

check "pkg-config knows the version" "$version" pkg-config --modversion widenet
check "pkg-config says where the header is" "-I$prefix/include" \
  bash -c 'echo $(pkg-config --cflags-only-I widenet)'

with_pkg_config() {  # options of pkg-config
  $CXX -std=c++17 -O1 $eigen $here/consumer.cpp -o "$work/consumer" \
    $(pkg-config --cflags --libs "$@" widenet) && "$work/consumer"
}
check "a project with pkg-config, without threads" \
  "widenet $version, 6 values, without OpenMP" with_pkg_config --define-variable=openmp=
threads="without OpenMP"
if echo 'int main() {}' | $CXX -fopenmp -x c++ - -o /dev/null 2> /dev/null; then
  threads="with OpenMP"
  check "a project with pkg-config" "widenet $version, 6 values, $threads" with_pkg_config
fi

with_cmake() {  # version wanted
  rm -rf "$work/cmake"
  cmake -S $here -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_CXX_COMPILER="$CXX" \
    -DCMAKE_CXX_FLAGS="$eigen" -DWANTED_VERSION="$1" > "$work/cmake.log" 2>&1 &&
    cmake --build "$work/cmake" >> "$work/cmake.log" 2>&1 && "$work/cmake/consumer" && return
  grep -A 3 -iE 'error|version: ' "$work/cmake.log"
  return 1
}
check "a project with CMake" "widenet $version, 6 values, $threads" with_cmake "${version%.*}"
if with_cmake 99.0 > "$work/refused.log"; then
  echo "FAILED  CMake must refuse version 99.0"
  failed=$((failed + 1))
else
  check "CMake refuses a version that is not there" "version: $version" \
    bash -c "grep -o 'version: .*' $work/refused.log | tail -n 1"
fi

$MAKE install DESTDIR="$PWD/build/install/staged" PREFIX=/usr > "$work/staged.log" 2>&1
check "DESTDIR comes before PREFIX, and is in no file" "/usr/include/widenet.hpp
/usr/share/cmake/widenet/widenetConfig.cmake
/usr/share/cmake/widenet/widenetConfigVersion.cmake
/usr/share/pkgconfig/widenet.pc
prefix=/usr" bash -c 'cd build/install/staged && find . -type f | sed "s/^.//" | sort &&
  grep -h prefix= usr/share/pkgconfig/widenet.pc && ! grep -rl staged .'

[ "$failed" = 0 ]
