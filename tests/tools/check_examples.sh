#!/usr/bin/env bash
# Runs the examples given and compares what each prints with examples/expected/NAME.txt.
set -u

passed=0 failed=0
for program; do
  name=${program##*/}
  expected=examples/expected/$name.txt
  printed=$program.txt
  why=
  if ! ${RUN:-} "$program" > "$printed" 2> "$printed.err" < /dev/null; then
    why="fails: $(tail -n 3 "$printed.err")"
  elif [ ! -f "$expected" ]; then
    why="$expected is missing: look at $printed, then run \`make expected\`"
  elif ! difference=$(diff -u "$expected" "$printed"); then
    why="prints something else:"$'\n'"$(echo "$difference" | head -n 30)"
  fi
  if [ -z "$why" ]; then
    echo "ok      $name"
    passed=$((passed + 1))
  else
    echo "FAILED  $name $why"
    failed=$((failed + 1))
  fi
done
for expected in examples/expected/*.txt; do  # output whose example is gone
  name=$(basename "$expected" .txt)
  [ -f "examples/$name.cpp" ] || [ ! -f "$expected" ] ||
    { echo "FAILED  $expected belongs to no example"; failed=$((failed + 1)); }
done
echo "examples: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
