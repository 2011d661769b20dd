#!/usr/bin/env bash
# The bug zoo:  check_zoo.sh [bugs | harmless | quick | NAME... | NUMBER/VARIATION...]
#
# Each tests/zoo/NAME.sed makes a real bug of other implementations in a copy of the header, and
# says which golden case shows it. `validate compare` must catch it, at the result and as the kind
# of departure that NAME.sed expects, and names it if it says the cause that NAME.sed expects, too.
# Without the bug the same case has to agree.
#
# Harmless variations compute all golden cases, in double and in float: with other compilers, flags
# and numbers of threads, and with copies of the header that add up in another order, round
# elsewhere or call other functions (tests/zoo/harmless). None may raise an alarm. Bits are counted
# against those of the first, plain one: they must be the same, or not all the same, if it says so.
#
# Without arguments both; `quick` is a bug of each kind and one variation. COMPILER is the compiler
# with its flags, but for -O and OpenMP; JOBS is how many run beside each other.
set -u

zoo=build/zoo validate="${RUN:-} build/examples/validate" own=$COMPILER
portable=$(sed -E 's/ -march=[^ ]*//' <<< "$own") clang="clang++ ${own#* }"
few_bugs=(served_by_choice experts_swapped shared_tensor_stepped_often)
by_definition="-DWIDENET_NO_VECTORS=1"  # of products: the same bits, and less to compile
mkdir -p "$zoo"
echo "# lines: 0" > "$zoo/nothing.sed"

value() { sed -n "s/^# $1: //p" "$2"; }                     # a line of NAME.sed
field() { sed -nE "s/.*\"$1\":\"([^\"]*)\".*/\1/p" "$2"; }  # a word of a verdict in JSON

queue=()  # the folders of what was spawned
# spawn FUNCTION NAME ARGUMENT...: calls it beside others, in a folder; its line goes to `result`.
# Of variations only those that were asked for, and the plain one that they are held to.
spawn() {
  local folder=$zoo/$2
  [[ -z $only || " $only " == *" $2 "* || $2 == */plain && " $only" == *" ${2%plain}"* ]] || return
  rm -rf "$folder"
  mkdir -p "$folder"
  queue+=("$folder")
  while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-$(nproc)}" ]; do wait -n; done
  "$@" > "$folder/result" &
}

# build CHANGE COMPILER...: compiles run.cpp with a changed header, or says why it cannot.
build() {
  local change=$1 lines
  shift
  sed -f "$change" widenet.hpp > "$folder/widenet.hpp"
  lines=$(diff widenet.hpp "$folder/widenet.hpp" | grep -c '^>')
  if [ "$lines" != "$(value lines "$change" | grep . || echo 1)" ]; then
    echo "FAILED  does not apply: it changes $lines lines"
  elif ! "$@" -iquote "$folder" tests/zoo/run.cpp -o "$folder/run" > "$folder/log" 2>&1; then
    echo "FAILED  does not compile: see $folder/log"
  else
    return 0
  fi
  return 1
}

# judge NAME: is the bug caught, and named?
judge() {
  local change=tests/zoo/$1.sed case settings expected got
  printf '%-30s ' "$1"
  build "$change" $own -O0 $by_definition || return
  case=data/golden/$(value case "$change").safetensors settings=$(value settings "$change")
  if ! ${RUN:-} "$folder/run" "$case" "$folder/out" "${settings:--}" > "$folder/log" 2>&1; then
    echo "FAILED  does not run: $(tail -n 1 "$folder/log")"
    return
  fi
  [ -z "$settings" ] || case=$folder/out.case
  if ! { $validate run "$case" "$folder/healthy" && $validate compare "$case" "$folder/healthy"; } \
    > "$folder/log" 2>&1; then
    echo "FAILED  caught without the bug, too: see $folder/log"
    return
  fi
  if ! grep -q '^tolerance: float64: .*; float32: .*; whole numbers: none$' "$folder/log"; then
    echo "FAILED  the tolerance is not stated: see $folder/log"
    return
  fi
  $validate compare "$case" "$folder/out" --json > "$folder/verdict" 2> "$folder/log"
  case $? in
    0) echo "FAILED  not caught"; return ;;
    1) ;;
    *) echo "FAILED  cannot be compared: $(tail -n 1 "$folder/log")"; return ;;
  esac
  got="$(field first "$folder/verdict"), $(field kind "$folder/verdict"), "
  got+=$(field hint "$folder/verdict") expected=$(value expect "$change")
  if [ "$got" = "$expected, " ]; then
    echo "caught  $expected"
  elif [[ $expected == *", "*", "* && $got == "$expected"* ]]; then
    echo "named   $got"
  else
    echo "FAILED  caught as: $got; expected: $expected"
  fi
}

# vary NUMBER/NAME BITS THREADS COMPILER FLAG...: all cases; is there an alarm?
vary() {
  local number=${1%/*} name=${1#*/} bits=$2 threads=$3 compiler=$4 change case out num_threads
  local compared=0 others=0 alarms=0 words=()
  shift 4
  change=tests/zoo/harmless/$name.sed
  [ -f "$change" ] || change=$zoo/nothing.sed
  printf '%-20s %-6s ' "$name" "$number"
  build "$change" $compiler "-DZOO_NUMBER=$number" "$@" || return
  for case in data/golden/*.safetensors; do words+=("$case" "$folder/${case##*/}" -); done
  for num_threads in ${threads//,/ }; do
    if ! OMP_NUM_THREADS=$num_threads ${RUN:-} "$folder/run" "${words[@]}" > "$folder/log" 2>&1
    then
      echo "FAILED  does not run: $(tail -n 1 "$folder/log")"
      return
    fi
    for case in data/golden/*.safetensors; do
      out=$folder/${case##*/}
      compared=$((compared + 1))
      cmp -s "$out" "$zoo/$number/plain/${case##*/}" || others=$((others + 1))
      $validate compare "$case" "$out" > "$folder/said" 2>&1 && continue
      alarms=$((alarms + 1))
      { echo "$case, $num_threads threads:"; cat "$folder/said"; } >> "$folder/alarms"
    done
  done
  printf '%7s %5d %10d %6d  ' "$threads" $compared $others $alarms
  case $bits:$((others > 0)):$((alarms > 0)) in
    *:1) echo "FAILED  see $folder/alarms" ;;
    same:1:*) echo "FAILED  has other bits" ;;
    other:0:*) echo "FAILED  changes no bit" ;;
    *) echo "${compiler%% *} $*" ;;
  esac
}

# variations NUMBER: whatever is harmless.
variations() {
  spawn vary "$1/plain" same 1 "$own" -O0 $by_definition
  wait
  spawn vary "$1/optimised" same 1 "$own" -O3
  spawn vary "$1/threads" same 1,2,3,5 "$own" -O1 -fopenmp $by_definition
  spawn vary "$1/any_machine" same 1 "$portable" -O1
  if command -v clang++ > /dev/null; then
    spawn vary "$1/clang" same 1 "$clang" -O2
    spawn vary "$1/clang_contracted" any 1 "$clang" -O2 -ffp-contract=fast
  fi
  spawn vary "$1/contracted" any 1 "$own" -O2 -ffp-contract=fast
  spawn vary "$1/eigen" any 1 "$own" -O1 -DWIDENET_EIGEN=1
  for change in tests/zoo/harmless/*.sed; do
    change=$(basename "$change" .sed)
    [ "$change" = threads ] || spawn vary "$1/$change" other 1 "$own" -O1 $by_definition
  done
}

# report: waits for what was spawned, prints what came out.
report() {
  wait
  for folder in "${queue[@]}"; do cat "$folder/result"; done | tee "$zoo/report"
  failed=$((failed + $(grep -c FAILED "$zoo/report")))
  queue=()
}

failed=0 names='' only=''
case ${1:-all} in
  all | bugs) names=$(basename -s .sed tests/zoo/*.sed) ;;
  quick) names=${few_bugs[*]} ;;
  harmless) ;;
  */*) only=$* ;;
  *) names=$* ;;
esac
if [ -n "$names" ]; then
  for name in $names; do spawn judge "$name"; done
  report
  named=$(awk '$2 == "named"' "$zoo/report" | wc -l)
  caught=$(awk '$2 == "named" || $2 == "caught"' "$zoo/report" | wc -l)
  echo "zoo: $caught of $(wc -w <<< "$names") bugs caught, $named of them named"
  [ "${1:-all}" != all ] || [ "$named" -ge 18 ] || failed=$((failed + 1))
fi
if [[ ${1:-all} == @(all|harmless|quick|*/*) ]]; then
  printf '%-20s %-6s %7s %5s %10s %6s\n' variation number threads cases 'other bits' alarms
  if [ "${1:-}" = quick ]; then
    spawn vary float/plain same 1 "$own" -O0 $by_definition
    wait
    spawn vary float/sums_backwards other 1 "$own" -O0 $by_definition
  else
    variations double
    variations float
  fi
  report
  awk '{ cases += $4; others += $5; alarms += $6 } END {
    printf "zoo: %d harmless variations of a case, %d of them with other bits, %d false alarms\n",
      cases, others, alarms }' "$zoo/report"
fi
[ "$failed" = 0 ]
