#!/usr/bin/env bash
# Every exercise has a text, a stub that says "not done yet", a solution that passes, and three or
# more typical wrong answers, each of which fails with its own hint. Then answers that are worse
# than wrong: they must be stopped with a reason.
#
# `make check-exercises` runs it when all answers are built, with the compiler in TRY_COMPILER.
set -u

passed=0 failed=0
verdict() {  # name, what is wrong, or nothing
  if [ -z "$2" ]; then
    passed=$((passed + 1))
  else
    echo "FAILED  $1: $2"
    failed=$((failed + 1))
  fi
}

# Runs a program as exercise $2; it must exit with $3 and print the text $4.
expect() {
  local name=$1 program=$2 number=$3 status=$4 text=$5 printed got
  printed=$(${RUN:-} "$program" "$number" 2>&1)
  got=$?
  if [ "$got" != "$status" ]; then
    verdict "$name" "exits with $got, not $status: $printed"
  elif [[ $printed != *"$text"* ]]; then
    verdict "$name" "does not print \"$text\" but: $printed"
  else
    verdict "$name" ""
  fi
}

# The hint that a wrong answer carries.
hint_of() { sed -n '/^const char\* hint/,/;$/s/.*"\(.*\)";$/\1/p' "$1"; }

for folder in examples/exercises/*/; do
  folder=${folder%/}
  name=${folder##*/}
  number=$((10#${name%%_*}))
  programs=build/exercises/$name
  grep -q "^# Exercise $number: " "$folder/README.md" &&
    grep -q "make exercise N=$number\`" "$folder/README.md" &&
    verdict "$name/README.md" "" ||
    verdict "$name/README.md" "must begin with \"# Exercise $number: \" and name its command"
  expect "$name/stub" "$programs/stub" "$number" 1 "not done yet"
  expect "$name/solution" "$programs/solution" "$number" 0 ": right, all "
  hints=
  for wrong in "$folder"/wrong_*.cpp; do
    mistake=$(basename "$wrong" .cpp)
    hint=$(hint_of "$wrong")
    hints+="$hint"$'\n'
    expect "$name/$mistake" "$programs/$mistake" "$number" 1 "  hint: ${hint:-(it has none)}"
  done
  distinct=$(grep . <<< "$hints" | sort -u | wc -l)
  if [ "$distinct" -lt 3 ] || [ "$distinct" != "$(ls "$folder"/wrong_*.cpp | wc -l)" ]; then
    verdict "$name" "must have three wrong answers or more, each with a hint of its own"
  fi
done

# Compiles the answer on stdin and expects it to be stopped with the text given.
stopped() {  # name, exercise, text
  local program=build/exercises/$1
  { printf '#include <stdexcept>\n#include <string>\n#include <vector>\n'; cat; } > "$program.cpp"
  if $TRY_COMPILER "$program.cpp" build/exercises/checker.o -o "$program" 2> "$program.err"; then
    expect "$1" "$program" "$2" 1 "$3"
  else
    verdict "$1" "does not compile: $(head -n 3 "$program.err")"
  fi
}
softmax='std::vector<double> softmax_backward(const std::vector<double>& p,
                                              const std::vector<double>& dp, int N, int E)'

stopped other_size 2 "dz has 34 values; it must have 7 * 5 = 35" <<END
$softmax { return std::vector<double>(34, 1.0); }
END
stopped outside_of_a_vector 2 "stopped: an index lies outside of a vector" <<END
$softmax { std::vector<double> dz(35); dz[N * E] = p[0] + dp[0]; return dz; }
END
stopped foreign_memory 2 "stopped: memory is read or written that belongs to nobody" <<END
$softmax { const double* none = nullptr; return {none[N * E]}; }
END
stopped division_by_zero 2 "stopped: an integer is divided by zero" <<END
$softmax { volatile int zero = 0; return {double(N / zero)}; }
END
stopped endless_loop 2 "stopped: no answer after 5 s" <<END
$softmax { for (volatile int i = 0; i < 9; i = 0) {} return {}; }
END
stopped exception 2 "stopped: it throws \"no idea\"" <<END
$softmax { throw std::runtime_error("no idea"); }
END
stopped other_parameters 2 "not found: the file defines no function" <<END
std::vector<double> softmax_backward(const std::vector<double>& p, int N) { return {p[0] + N}; }
END
stopped not_a_number 2 "dz[n = 0, e = 0]: expected -0.00538539285, got " <<END
$softmax { return std::vector<double>(N * E, std::stod("nan")); }
END

echo "exercises: $passed checks passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
