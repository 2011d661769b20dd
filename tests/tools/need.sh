#!/usr/bin/env bash
# Sees to it that this machine has what a make target needs:  need.sh compiler openmp doctest ...
#
# It asks the compiler, not the package manager, so that what was installed in any other way counts
# too. What is missing is installed with apt-get where there is one and we are root or have sudo;
# everywhere else the script says what to install, and fails.
set -u

cxx=${CXX:-g++}
eigen_dir=${EIGEN_DIR:-/usr/include/eigen3}

# Compiles the program on stdin. -w: a probe is about what exists.
compiles() { $cxx -std=c++17 -w -isystem "$eigen_dir" "$@" -x c++ - -o /dev/null; }

has() {
  case $1 in
    compiler)   echo '#include <variant>' | compiles -fsyntax-only ;;
    openmp)     printf '#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }' |
                  compiles -fopenmp ;;
    sanitizers) echo 'int main() {}' | compiles -fsanitize=address,undefined ;;
    doctest)    echo '#include <doctest/doctest.h>' | compiles -E ;;
    eigen)      echo '#include <Eigen/Core>' | compiles -E ;;
    *)          command -v "$1" ;;
  esac > /dev/null 2>&1
}

# The package that brings it, for apt, dnf, pacman and brew; "-" where it comes with the compiler.
version=$(echo "$cxx" | sed -n 's/.*++\(-[0-9]*\)$/\1/p')
number=${version#-}
packages() {
  case $1:$cxx in
    compiler:*clang*) echo "clang$version clang clang llvm" ;;
    compiler:*)       echo "g++$version gcc-c++ gcc gcc" ;;
    openmp:*clang*)   echo "libomp-${number:+$number-}dev libomp-devel openmp libomp" ;;
    sanitizers:*clang*) echo "libclang-rt-${number:+$number-}dev compiler-rt compiler-rt llvm" ;;
    sanitizers:*)     echo "- libasan,libubsan - -" ;;
    doctest:*)        echo "doctest-dev doctest-devel doctest doctest" ;;
    eigen:*)          echo "libeigen3-dev eigen3-devel eigen eigen" ;;
    pkg-config:*)     echo "pkg-config pkgconf-pkg-config pkgconf pkgconf" ;;
    openmp:*)         echo "- - - -" ;;
    *)                echo "$1 $1 $1 $1" ;;
  esac
}

missing() { for need; do has "$need" || echo "$need"; done; }

# Their packages, for the column given.
packages_of() {
  local column=$1 need
  shift
  for need; do packages "$need" | cut -d ' ' -f "$column"; done |
    tr ',' '\n' | grep -vx -- - | sort -u | tr '\n' ' '
}

lacking=$(missing "$@")
[ -z "$lacking" ] && exit 0

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
wanted=$(packages_of 1 $lacking)
if [ -n "$wanted" ] && command -v apt-get > /dev/null &&
   { [ -z "$as_root" ] || command -v sudo > /dev/null; }; then
  mkdir -p build
  exec 9> build/need.lock
  flock 9  # another target may be installing
  lacking=$(missing "$@")
  wanted=$(packages_of 1 $lacking)
  if [ -n "$wanted" ]; then
    echo "Installing ${wanted% } with apt-get ..."
    apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends"
    $apt install $wanted > build/need.log 2>&1 < /dev/null ||
      { $apt update && $apt install $wanted; } > build/need.log 2>&1 < /dev/null ||
      tail -n 5 build/need.log >&2
    lacking=$(missing "$@")
  fi
  [ -z "$lacking" ] && exit 0
fi

{
  echo "This needs, with the compiler $cxx:" $lacking
  if [ -n "$wanted" ]; then
    echo "  Debian, Ubuntu   sudo apt-get install $wanted"
    echo "  Fedora           sudo dnf install $(packages_of 2 $lacking)"
    echo "  Arch             sudo pacman -S $(packages_of 3 $lacking)"
    echo "  macOS            brew install $(packages_of 4 $lacking)"
  fi
  case " $(echo $lacking) " in
    *" openmp "*) echo "  $cxx compiles without OpenMP too, for one thread: make OMP=0 ..." ;;
  esac
  case " $(echo $lacking) " in
    *" eigen "*) echo "  If Eigen is elsewhere: make EIGEN_DIR=/where/it/is ..." ;;
  esac
} >&2
exit 1
