#!/usr/bin/env bash
# What the header costs to compile: including it, compared with including <Eigen/Dense>, and the
# quick start at -O3. `make bench` runs it, with CXX and FLAGS. The runs are interleaved, so that
# a busy moment of the machine hits them all alike. Times are processor seconds of the compiler,
# user and system: medians of ROUNDS rounds. Prints a JSON line for each.
set -u

rounds=${ROUNDS:-5}
folder=build/bench/compile_time
rm -rf "$folder"
mkdir -p "$folder"
echo 'int main() {}' > "$folder/nothing.cpp"
printf '#include <Eigen/Dense>\nint main() {}\n' > "$folder/eigen.cpp"
printf '#include "widenet.hpp"\nint main() {}\n' > "$folder/header.cpp"

seconds() {  # of compiling a file; what follows are flags
  local TIMEFORMAT='%U %S' file=$1
  shift
  { time $CXX $FLAGS "$@" -c "$file" -o "$folder/out.o" 2> "$folder/errors" ||
    { cat "$folder/errors" >&2; exit 1; }; } 2>&1 | awk '{ print $1 + $2 }'
}

for _ in $(seq "$rounds"); do
  seconds "$folder/nothing.cpp" -O3 >> "$folder/nothing.times"
  seconds "$folder/eigen.cpp" -O3 >> "$folder/eigen.times"
  seconds "$folder/header.cpp" -O3 >> "$folder/header.times"
  seconds examples/quickstart.cpp -O3 >> "$folder/quickstart.times"
done

median() { sort -n "$folder/$1.times" | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }
line() { printf '{"what": "%s", "seconds": %.3f}\n' "$1" "$(median "$2")"; }
line "an empty program" nothing
line "include <Eigen/Dense>" eigen
line "include widenet.hpp" header
line "examples/quickstart.cpp" quickstart
