#!/usr/bin/env bash
# A checkpoint that one build of tests/emulated_gpu/go_on wrote goes on in the other, and whoever
# works first and second, the end has the same bits:
#   check_crossing.sh ONE OTHER
set -u
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
"$1" "$folder/straight" 6 || exit 1
same=0
for first in "$1" "$2"; do
  for second in "$1" "$2"; do
    rm -f "$folder/file"
    if "$first" "$folder/file" 3 && ! cmp -s "$folder/file" "$folder/straight" &&
      "$second" "$folder/file" 6 && cmp "$folder/file" "$folder/straight"; then
      same=$((same + 1))
    else
      echo "FAILED  $first to step 3, $second to step 6"
    fi
  done
done
echo "check-crossing: $same of 4 ways end with the same bits"
[ "$same" = 4 ]
