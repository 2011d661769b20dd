#!/usr/bin/env bash
# Checks what a tool can check of the style:  lint.sh [PART OF THE NAME OF A RULE]
#
# `make lint` runs it, with the flags in BASE and WARNINGS and the number of processors in JOBS.
# One line per rule: ok or FAILED, what it counted, and under FAILED what is wrong.
#
# A rule is a function that prints what is wrong and leaves the number of things that it looked at
# in `counted`. It fails if it prints anything, or if it looked at nothing.
set -u
export LC_ALL=C

header=widenet.hpp
only=${1:-}
scratch=build/lint
rm -rf "$scratch"
mkdir -p "$scratch"

# Everything that git tracks or would; outside of a repository, everything there is.
git -c safe.directory='*' ls-files --cached --others --exclude-standard \
  > "$scratch/all" 2> /dev/null
[ -s "$scratch/all" ] ||
  find . -name build -prune -o -type f -print | sed 's,^\./,,' > "$scratch/all"
while read -r file; do [ -f "$file" ] && echo "$file"; done < "$scratch/all" > "$scratch/files"
# What people write and read: not data, not what a program printed.
grep -E -e '\.(hpp|cpp|cu|h|cmake|py|sh|md|html|css|js|yml)$' -e '^\.' \
  -e '(^|/)(Makefile|CMakeLists\.txt|LICENSE)$' "$scratch/files" > "$scratch/texts"
grep -v 'Makefile$' "$scratch/texts" > "$scratch/without_tabs"
grep -v '^tests/tools/lint\.sh$' "$scratch/texts" > "$scratch/but_lint"  # which names what it seeks
# The tests are compiled with all warnings by `make test`: here it is enough if clang sees them.
grep -E '^(examples|tests/bench|tests/install)/[^/]*\.cpp$' "$scratch/files" \
  > "$scratch/programs"
grep -E '^tests/[^/]*\.cpp$' "$scratch/files" > "$scratch/tests"

rules_ok=0 rules_failed=0
rule() {
  local name=$1
  [[ $name == *"$only"* ]] || return 0
  shift
  counted=0
  "$@" > "$scratch/output" 2>&1
  if [ ! -s "$scratch/output" ] && [ "$counted" -gt 0 ]; then
    printf 'ok      %-58s %4d\n' "$name" "$counted"
    rules_ok=$((rules_ok + 1))
  else
    printf 'FAILED  %-58s %4d\n' "$name" "$counted"
    [ -s "$scratch/output" ] || echo "nothing to look at" > "$scratch/output"
    head -n 40 "$scratch/output" | sed 's/^/        /'
    rules_failed=$((rules_failed + 1))
  fi
}

# COMPILING ========================================================================================

# Prints what the compiler says about each file listed in $1; the rest is the command.
compile_each() {
  local list=$1
  shift
  counted=$(wc -l < "$list")
  command="$*" xargs -P "$JOBS" -I FILE bash -c '
    said=$($command "FILE" 2>&1) || said="$said
FILE does not compile"
    [ -z "$said" ] || printf "%s\n" "$said"' < "$list"
}

strict_flags() {  # compiler
  case $1 in
    g++*) echo "$WARNINGS -Wno-maybe-uninitialized -Werror" ;;
    *)    echo "$WARNINGS -Werror" ;;
  esac
}

warnings() {  # list compiler flag
  compile_each "$scratch/$1" "$2" $BASE $(strict_flags "$2") $3 -fsyntax-only
}

# Some warnings come from the optimiser, which -fsyntax-only does not run.
optimised_warnings() {
  echo examples/quickstart.cpp > "$scratch/optimised"
  compile_each "$scratch/optimised" "$1" $BASE $(strict_flags "$1") -fopenmp -O2 -c -o /dev/null
}

include_orders() {
  local eigen='#include <Eigen/Dense>' doctest='#include <doctest/doctest.h>'
  local standard='#include <algorithm>
#include <cmath>
#include <iostream>
#include <omp.h>' own="#include \"$header\"" n=0 order
  for order in "$own" "$own
$own" "$own
$eigen
$doctest
$standard" "$standard
$doctest
$eigen
$own" "$eigen
$own
$standard"; do
    n=$((n + 1))
    echo "$order" > "$scratch/order_$n.cpp"
    echo "$scratch/order_$n.cpp"
  done > "$scratch/orders"
  compile_each "$scratch/orders" g++ $BASE $(strict_flags g++) -fopenmp -fsyntax-only
}

# Two things of one name in two headers are two things in one program, and no compiler says so
# unless it sees both.
support_in_one_program() {
  grep -E '^examples/support/[^/]*\.hpp$' "$scratch/files" | sed 's,.*,#include "&",' \
    > "$scratch/support.cpp"
  echo "$scratch/support.cpp" > "$scratch/support"
  compile_each "$scratch/support" g++ $BASE -fsyntax-only
  counted=$(wc -l < "$scratch/support.cpp")
}

links_twice() {
  echo "#include \"$header\"" > "$scratch/first.cpp"
  printf '#include "%s"\nint main() {}\n' "$header" > "$scratch/second.cpp"
  counted=2
  g++ $BASE -O0 "$scratch/first.cpp" "$scratch/second.cpp" -o "$scratch/twice"
}

# The macros that the header defines and leaves behind, but for its guard, its version and the
# switches that a user may set: those of chapter 1 in the form #ifndef X, #define X.
macros() {  # flags
  local macro
  echo "#include \"$header\"" | g++ $BASE "$@" -E -dD -x c++ - | awk '
    /^# [0-9]+ "/ { inside = $3 ~ /widenet\.hpp"$/; next }
    inside && /^#define / { sub(/\(.*/, "", $2); left[$2] = 1 }
    inside && /^#undef / { delete left[$2] }
    END { for (name in left) print name }' | sort > "$scratch/left"
  awk '$1 ~ /^#/ { sub(/^#[ ]*/, "#") }
       $1 == "#ifndef" { asked = $2; if (!guard) print guard = $2; next }
       $1 == "#define" && $2 == asked && $2 ~ /^WIDENET_/ { print $2 }
       { asked = "" }' "$header" | sort -u > "$scratch/switches"
  counted=$(wc -l < "$scratch/left")
  grep -vxFf "$scratch/switches" "$scratch/left" | grep -vE '^WIDENET_VERSION(_[A-Z]+)?$' |
    sed "s/^/$header defines, and does not undefine, /"
}

# The first program in README compiles as it stands there.
readme_program() {
  awk -v base="$scratch/readme_" '
    /^```cpp/ { inside = 1; file = base (++n) ".cpp"; printf "" > file; next }
    /^```/    { inside = 0 }
    inside    { print > file }' README.md
  local program
  program=$(grep -l 'int main' "$scratch"/readme_*.cpp 2> /dev/null | sort -V | head -n 1)
  [ -n "$program" ] || { echo "README.md has no block of C++ with int main"; return; }
  counted=$(wc -l < "$program")
  g++ $BASE $(strict_flags g++) -fopenmp -O0 "$program" -o "$scratch/readme" ||
    echo "the program in README.md does not compile"
}

# The program in README is an example too, so that what it prints is checked.
readme_is_quickstart() {
  tail -n +2 examples/quickstart.cpp > "$scratch/quickstart"  # the first line says what it shows
  counted=$(wc -l < "$scratch/quickstart")
  cat "$scratch"/readme_*.cpp | diff - "$scratch/quickstart" > "$scratch/difference" ||
    { echo "README.md and examples/quickstart.cpp differ:"; cat "$scratch/difference"; }
}

# READING ==========================================================================================

# CONTENTS names every chapter once, with the title on its banner, in ascending order down its
# columns; the banners are [1] to [17] in order, in capitals, 100 columns wide.
contents() {
  counted=$(grep -cE '^// \[[0-9]+\] .*=$' "$header")
  awk '
    function fail(text) { print FILENAME ":" NR ": " text }
    /^\/\/ CONTENTS/ { listing = 1; next }
    listing && /^\/\/[ ]*$/ { listing = 0 }
    listing {
      line = $0
      for (at = 0; match(line, /\[[0-9]+\] /); ) {
        column = at + RSTART
        number = substr(line, RSTART + 1, RLENGTH - 3) + 0
        line = substr(line, RSTART + RLENGTH); at = column + RLENGTH - 1
        title = line
        sub(/   *.*/, "", title)  # two spaces end a title
        if (number in listed) fail("[" number "] is listed twice")
        if (number < last[column]) fail("[" number "] is listed below [" last[column] "]")
        listed[number] = title; last[column] = number
      }
    }
    /^\/\/ \[[0-9]+\] .*=$/ {
      number = substr($2, 2) + 0; title = $0
      sub(/^\/\/ \[[0-9]+\] /, "", title); sub(/ =+$/, "", title)
      if (number != ++banners) fail("banner [" number "] stands where [" banners "] belongs")
      if (title != toupper(title)) fail("the title on a banner is in capitals; got " title)
      if (length($0) != 100) fail("a banner is 100 columns wide; got " length($0))
      if (!(number in listed)) fail("[" number "] " title " is not in CONTENTS")
      else if (toupper(listed[number]) != title)
        fail("[" number "] is " listed[number] " in CONTENTS and " title " on its banner")
      shown[number] = 1
    }
    END {
      if (banners != 17) fail("there are 17 chapters; got " banners + 0 " banners")
      for (number in listed) if (!(number in shown)) fail("[" number "] has no banner")
    }' "$header"
}

# Every equation has its tags in the header, code under them and a test: see equations.txt.
equations() {
  counted=$(grep -cE '\[(eq [0-9]+|d [a-z_]+)\]' "$header")
  g++ -std=c++17 $(strict_flags g++) tests/tools/equations.cpp -o "$scratch/equations" &&
    "$scratch/equations" "$header" tests/tools/equations.txt "$scratch/equations.html" tests/*.cpp
}

# Lines of the header that match a pattern outside the chapters listed, comments left out.
only_in_chapters() {  # chapters, pattern
  counted=$(grep -cE "$2" "$header")
  awk -v chapters=" $1 " -v pattern="$2" '
    /^\/\/ \[[0-9]+\] .*=$/ { chapter = substr($2, 2) + 0 }
    { code = $0; sub(/\/\/.*/, "", code) }
    code ~ pattern && !index(chapters, " " chapter " ") {
      print FILENAME ":" NR ": in chapter " chapter + 0 ": " $0
    }' "$header"
}

# Lines of the files listed that match a pattern.
no_line() {  # list, grep's options and pattern
  local list=$scratch/$1
  shift
  counted=$(wc -l < "$list")
  xargs -d '\n' grep -nH "$@" < "$list"
}

never_prints() {
  counted=$(wc -l < "$header")
  sed 's,//.*,,' "$header" | grep -nE \
    '\b(cout|cerr|clog)\b|\b(printf|fprintf|puts|perror|exit|abort|quick_exit|terminate|assert) *\('
}

top_level() {
  counted=$(cut -d / -f 1 "$scratch/files" | sort -u | wc -l)
  cut -d / -f 1 "$scratch/files" | sort -u |
    grep -vxE 'widenet\.hpp|examples|tests|data|Makefile|README\.md|LICENSE|\..*' |
    sed 's/$/ does not belong at the top level/'
}

# ALL OF THEM ======================================================================================

for compiler in g++ clang++; do
  rule "no warnings: $compiler, with OpenMP" warnings programs $compiler -fopenmp
  rule "no warnings: $compiler, without OpenMP" warnings programs $compiler ""
  rule "no warnings: $compiler -O2, quickstart" optimised_warnings $compiler
done
rule "no warnings: clang++, the tests" warnings tests clang++ -fopenmp
rule "the header compiles before and after others, and twice" include_orders
rule "the header links from two translation units" links_twice
rule "the headers of the examples fit into one program" support_in_one_program
rule "the header leaves no macros behind" macros
rule "the header leaves no macros behind, with OpenMP and Eigen" macros -fopenmp -DWIDENET_EIGEN=1
rule "README's program compiles and links" readme_program
rule "README's program is examples/quickstart.cpp" readme_is_quickstart
rule "contents equal banners" contents
rule "equations have their tags, code and tests" equations
rule "WIDENET_CUDA is tested in chapters 1, 3 and 5 only" only_in_chapters "1 3 5" \
  '^ *# *(if|ifdef|ifndef|elif).*(WIDENET_CUDA|__CUDACC__|__CUDA_ARCH__|__NVCC__)'
rule "Eigen is used in chapter 5 only" only_in_chapters "5" 'Eigen::'
rule "the header never prints, exits or aborts" never_prints
rule "nothing new at the top level" top_level
rule "ASCII" no_line texts -P '[^\x00-\x7F]'
rule "at most 100 columns (but rows of tables)" no_line texts -E '^[^|].{100}'
rule "no tabs, no spaces at the end of a line" no_line without_tabs -E $'\t| $'
rule "nothing left to do" no_line but_lint -wE 'TODO|FIXME|XXX|HACK'
rule "no path of one machine" \
  no_line but_lint -E '(^|[^[:alnum:]_.])/(tmp|work|root|home)/[[:alpha:]]'

echo "lint: $rules_ok rules ok, $rules_failed failed"
[ "$rules_failed" = 0 ] && [ "$rules_ok" -gt 0 ]
