#!/usr/bin/env bash
# The bug zoo: each tests/zoo/NAME.sed makes a real bug of other implementations in a copy of the
# header. Their results must be caught by `validate compare`; it should also name them, which is to
# say that the first result to depart, its kind and its hint are those that NAME.sed expects. Then
# builds without a bug run all cases of data/golden, and none may raise an alarm.
#
#   check_zoo.sh BASE [NAME]...      BASE: the compiler and its flags, -O and OpenMP apart; with
#                                    names only these bugs, or only the builds without: harmless
#
# Fails if a bug is not caught, fewer than 18 of all are named, or there is a false alarm.
set -u
base=$1
shift
zoo=build/zoo validate=build/examples/validate
mkdir -p "$zoo"
names=("$@")
if [ "$*" = harmless ]; then
  names=()
elif [ $# = 0 ]; then
  for file in tests/zoo/*.sed; do names+=("$(basename "$file" .sed)"); done
fi

value() { sed -n "s/^# $1: //p" "tests/zoo/$2.sed"; }                    # of a line of NAME.sed
field() { sed -nE "s/.*\"$1\":\"([^\"]*)\".*/\1/p" "$zoo/$2/verdict"; }  # of a verdict in JSON

# is_as_expected "FIRST, KIND, HINT" "FIRST, KIND[, SETTING]": the hint has to hold the setting.
is_as_expected() {
  local kind=${2#*, }
  [[ $1 == "${2%%, *}, ${kind%%, *}, "* ]] || return 1
  [[ $kind != *", "* ]] || [[ $1 == *"${kind#*, }"* ]]
}

# judge NAME: writes one line, "named", "caught" or what went wrong, to build/zoo/NAME/result.
judge() {
  local name=$1 folder=$zoo/$1 case settings lines expected got
  mkdir -p "$folder"
  : > "$folder/verdict"
  sed -f "tests/zoo/$name.sed" widenet.hpp > "$folder/widenet.hpp"
  lines=$(diff widenet.hpp "$folder/widenet.hpp" | grep -c '^>')
  if [ "$lines" != "$(value lines "$name" | grep . || echo 1)" ]; then
    echo "FAILED   does not apply: it changes $lines lines" > "$folder/result"
    return
  fi
  case=data/golden/$(value case "$name").safetensors
  settings=$(value settings "$name")
  if ! ${base%% *} -I"$folder" ${base#* } -O0 tests/zoo/run.cpp -o "$folder/run" \
    > "$folder/log" 2>&1; then
    echo "FAILED   does not compile: see $folder/log" > "$folder/result"
    return
  fi
  # A bug may also end in an error: then the results that are missing count as caught.
  if ! "$folder/run" "$case" "$folder/out" "${settings:--}" > "$folder/log" 2>&1; then
    echo "caught   by an error: $(tail -n 1 "$folder/log")" > "$folder/result"
    return
  fi
  [ -z "$settings" ] || case=$folder/out.case
  if "$validate" compare "$case" "$folder/out" --json > "$folder/verdict" 2>&1; then
    echo "FAILED   not caught" > "$folder/result"
    return
  fi
  got="$(field first "$name"), $(field kind "$name"), $(field hint "$name")"
  expected=$(value expect "$name")
  if is_as_expected "$got" "$expected"; then
    echo "named    $got" > "$folder/result"
  else
    echo "caught   $got (expected: $expected)" > "$folder/result"
  fi
}

for name in ${names[@]+"${names[@]}"}; do
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
  judge "$name" &
done
wait
caught=0 named=0 failed=0
for name in ${names[@]+"${names[@]}"}; do
  result=$(cat "$zoo/$name/result")
  printf '%-32s %s\n' "$name" "$result"
  case $result in
    named*) named=$((named + 1)) caught=$((caught + 1)) ;;
    caught*) caught=$((caught + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
done
echo "zoo: ${#names[@]} bugs, $caught caught, $named named"

# Harmless variations: all cases, with other compilers, flags and numbers of threads.
alarms=0 variations=0
harmless() {  # harmless NAME THREADS FLAGS...
  local name=$1 threads=$2 folder=$zoo/harmless_$1 case
  shift 2
  mkdir -p "$folder"
  [ -x "$folder/run" ] || "$@" tests/zoo/run.cpp -o "$folder/run" ||
    { echo "FAILED   $name does not compile"; failed=$((failed + 1)); return; }
  for case in data/golden/*.safetensors; do
    variations=$((variations + 1))
    OMP_NUM_THREADS=$threads "$folder/run" "$case" "$folder/out" - &&
      "$validate" compare "$case" "$folder/out" > "$folder/said" 2>&1 ||
      { echo "ALARM    $name, $threads threads, $case: $(grep first "$folder/said")"
        alarms=$((alarms + 1)); }
  done
}
if [ $# = 0 ] || [ "$*" = harmless ]; then
  rm -rf "$zoo"/harmless_*
  for threads in 1 2 5; do harmless threads "$threads" $base -O2 -fopenmp; done
  harmless unfused 1 ${base/-march=native/} -O1
  harmless eigen 1 $base -O1 -DWIDENET_EIGEN=1
  harmless float 1 $base -O1 -DZOO_NUMBER=float
  if command -v clang++ > /dev/null; then harmless clang 1 clang++ ${base#* } -O1; fi
  echo "zoo: $variations harmless variations, $alarms false alarms"
fi
[ "$failed" = 0 ] && [ "$alarms" = 0 ] && { [ $# -gt 0 ] || [ "$named" -ge 18 ]; }
