#!/usr/bin/env bash
# Two builds of examples/validate compute the same bits in every case of data/golden:
#   check_bits.sh ONE OTHER
set -u
one=$1 other=$2
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
same=0 different=0
for case in data/golden/*.safetensors; do
  if "$one" run "$case" "$folder/one" > "$folder/said" 2>&1 &&
    "$other" run "$case" "$folder/other" > "$folder/said" 2>&1 &&
    cmp -s "$folder/one" "$folder/other"; then
    same=$((same + 1))
  else
    echo "FAILED  $case: $(tail -n 1 "$folder/said")"
    different=$((different + 1))
  fi
done
echo "check-bits: $same cases with the same bits, $different without"
[ "$different" = 0 ] && [ "$same" -ge 40 ]
