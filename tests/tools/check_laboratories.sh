#!/usr/bin/env bash
# Runs every laboratory with very few steps, and looks whether it says something and leaves a page;
# what it says is tested in tests/test_laboratory.cpp.
set -u

program=build/examples/laboratory
out=build/laboratory/check
passed=0 failed=0
rm -rf "$out"
mkdir -p "$out"

for name in $(${RUN:-} "$program" | sed -nE 's/^  [0-9]+ ([a-z]+) .*/\1/p'); do
  page=$out/$name.html
  why=
  if ! ${RUN:-} "$program" "$name" --steps 3 --seeds 2 --out "$out" \
    > "$out/$name.txt" 2> "$out/$name.err"; then
    why="fails: $(tail -n 3 "$out/$name.err")"
  elif ! grep -q '^  Measured' "$out/$name.txt"; then
    why="says nothing: see $out/$name.txt"
  elif [ ! -s "$page" ] || ! tail -n 1 "$page" | grep -q '</html>$'; then
    why="leaves no whole page: see $page"
  elif ! grep -q '<svg' "$page"; then
    why="has no figure in $page"
  elif grep -qE '[0-9 ](nan|inf)\b' "$out/$name.txt" "$page"; then
    why="says a number that is none"
  fi
  if [ -z "$why" ]; then
    echo "ok      $name"
    passed=$((passed + 1))
  else
    echo "FAILED  $name $why"
    failed=$((failed + 1))
  fi
done

# A name that is none, and a folder that is a file.
if ${RUN:-} "$program" nothing 2> "$out/name.err" || ! grep -q 'got nothing$' "$out/name.err"; then
  echo "FAILED  a name that is none is taken"
  failed=$((failed + 1))
fi
touch "$out/file"
if ${RUN:-} "$program" gate --steps 1 --seeds 1 --out "$out/file" > "$out/file.txt" \
  2> "$out/file.err" || ! grep -q 'must be writable' "$out/file.err"; then
  echo "FAILED  a page that cannot be written is not noticed"
  failed=$((failed + 1))
fi
echo "laboratories: $passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" = 6 ]
