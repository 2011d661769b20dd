#!/usr/bin/env bash
# All that only a real GPU can show, written to tests/bench/GPU.md:  gpu.sh [PART...]
#
#   tests      the tests, and which golden cases have the bits of the CPU
#   demo       the demo, and runs that one of CPU and GPU begins and the other ends
#   sanitizer  compute-sanitizer on whole training steps
#   torch      training steps beside PyTorch's on the same GPU, in fp32, tf32 and bf16
#
# `make bench-gpu` runs all parts, unless ARGS names some. A part compiles what it needs, and no
# more, and leaves its section in build/gpu when it is done; GPU.md is put together from those that
# are there. So a GPU that is lent for minutes can do one part after the other, and less of a part:
# TEST_ARGS are arguments of the test program, TOOLS those of compute-sanitizer, CONFIGS,
# PRECISIONS, FORMS and STEP_SECONDS say what of the part torch is measured now. Each tool and each
# precision has a section of its own; readings of the part torch are kept one by one, and one that
# is taken again replaces the older.
#
# Where no GPU answers it says so, and leaves GPU.md as it is.
set -u

folder=build/gpu cuda=build/cuda page=tests/bench/GPU.md
mkdir -p "$folder"
if ! nvidia-smi -L > "$folder/nvidia-smi.txt" 2>&1; then
  echo "bench-gpu: not run, because no GPU answers here"
  exit 0
fi
failed=0

# build TARGET...: what is timed or runs long is optimised on the host, too.
build() {
  "${MAKE:-make}" CUDA_O=-O2 "$@" >&2 && return
  echo "bench-gpu: cannot build $*" >&2
  failed=$((failed + 1))
  return 1
}

# check NAME COMMAND...: one line of a section; the output goes to build/gpu/NAME.txt.
check() {
  local name=$1 log=$folder/$1.txt start=$SECONDS result
  shift
  if "$@" > "$log" 2>&1; then result=ok; else result=FAILED; failed=$((failed + 1)); fi
  echo "bench-gpu: ${name//_/ }: $result, $((SECONDS - start)) s" >&2
  echo "- ${name//_/ }: $result ($((SECONDS - start)) s)"
}

# section NAME COMMAND...: what the command prints becomes the section, unless it fails.
section() {
  local name=$1
  shift
  "$@" > "$folder/$name.unfinished" && mv "$folder/$name.unfinished" "$folder/$name.md"
  write_page
}

write_page() {
  local part
  {
    echo "# On a GPU"
    echo
    echo "Written by \`make bench-gpu\` on $(date -u '+%Y-%m-%d')."
    echo
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader |
      sed 's/^/- GPU, memory, driver: /'
    echo "- CUDA: $("${NVCC:-nvcc}" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
    for part in tests demo sanitizer sanitizer_{memcheck,racecheck,initcheck,synccheck} \
        torch torch_{fp32,tf32,bf16}; do
      [ -s "$folder/$part.md" ] && { echo; cat "$folder/$part.md"; }
    done
  } > "$page"
}

# The results of the row kernels and of the router, in cases whose other results are products.
same_rows() {
  local case names="logits probabilities expert gate slot kept slots load importance balance_loss"
  for case in data/golden/{moe,balance}_*.safetensors; do
    build/examples/validate run "$case" "$folder/cpu.out" &&
      "$cuda/examples/validate" run "$case" "$folder/gpu.out" &&
      "${PYTHON:-python3}" tests/tools/same_tensors.py "$folder/cpu.out" "$folder/gpu.out" $names ||
      { echo "FAILED  $case"; return 1; }
  done
}

tests() {
  echo "## Tests"
  echo
  # shellcheck disable=SC2086  # several arguments
  check tests "$cuda/widenet_tests" --test-suite-exclude=slow ${TEST_ARGS:-}
  sed -n 's/^\[doctest\] \(test cases: .*\)/- \1/p' "$folder/tests.txt"
  # Row kernels have the bits of the CPU; products have their own, and what is made of them.
  tests/tools/check_bits.sh build/examples/validate "$cuda/examples/validate" > "$folder/bits.txt"
  sed -n 's/^check-bits: /- golden cases on CPU and GPU: /p' "$folder/bits.txt"
  local rows='layer_norm|rms_norm|gelu_|softmax|relu|tanh|cross_entropy|dropout|embedding'
  rows+='|mean_tokens|extract_patches|slice_tokens|prepend_token|add_to_sequences|optimiser_'
  check row_kernels_have_the_bits_of_the_CPU \
    bash -c "! grep -E '^FAILED  data/golden/($rows)' $folder/bits.txt"
  check routers_have_the_bits_of_the_CPU same_rows
}

# run_of PROGRAMS OUT OPTION...: becomes a demo that leaves the test digits alone.
run_of() { exec "$1/examples/demo" --validate --out "$folder/$2" "${@:3}"; }
# hand_over FIRST SECOND OUT: FIRST is interrupted soon after its first step, SECOND goes on.
hand_over() {
  rm -rf "${folder:?}/$3"
  (run_of "$1" "$3") &
  local pid=$! stopped=
  while [ ! -s "$folder/$3/metrics.jsonl" ] && kill -0 $pid; do sleep 0.02; done
  sleep 0.5
  kill -INT $pid && wait $pid || return
  stopped=$(wc -l < "$folder/$3/metrics.jsonl")
  (run_of "$2" "$3" --resume) && [ "$stopped" -lt "$(wc -l < "$folder/$3/metrics.jsonl")" ]
}

demo() {
  set -m  # what runs in the background hears SIGINT
  echo "## Demo"
  echo
  rm -rf "$folder/demo"
  check demo "$cuda/examples/demo" --out "$folder/demo"
  check begun_on_the_CPU_ended_on_the_GPU hand_over build "$cuda" from_cpu
  check begun_on_the_GPU_ended_on_the_CPU hand_over "$cuda" build from_gpu
  echo
  sed 's/.*\r//; s/^/    /' "$folder/demo.txt" | tail -n 8
}

sanitizer() {
  cat << 'TEXT'
## compute-sanitizer

racecheck watches shared memory, of which our kernels have none: it sees those of cuBLAS only.
TEXT
  command -v compute-sanitizer > /dev/null || echo "Not run: there is no compute-sanitizer here."
}

sanitizer_tool() {
  local tool=$1 example case
  for example in autograd routing_by_hand checkpoint; do
    check "${tool}_$example" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$cuda/examples/$example"
    [ "$tool" = racecheck ] && return
  done
  for case in encoder_widenet language_widenet moe_mesh_top2 moe_tutel training_lamb; do
    check "${tool}_$case" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$cuda/examples/validate" run "data/golden/$case.safetensors" "$folder/$case.out"
  done
}

torch() {
  echo "## Training steps beside PyTorch $("$python" -c 'import torch; print(torch.__version__)')"
  cat << 'TEXT'

Forward, backward and AdamW from the same weights and batch, until the GPU has finished; medians,
one form after the other. `eager` and `model` multiply per expert and ask the GPU for the loads in
every block; `-batched` pads to the capacity, as ours does; `model` is torch.compile, `graphs` that
with CUDA graphs. The ratio is the time of PyTorch's fastest form over ours: above 1 ours is ahead.
Padded over useful products: all that is multiplied over what belongs to kept choices. GB: tensors.
TEXT
}

torch_precision() {
  local precision=$1
  local configs=digits1:256,digits2:256,mnist:256,cifar:256,mlm:64,wideB:64,widenet_b:64
  printf '%s:\n\n' "$precision"
  "$python" tests/bench/bench_torch.py --device cuda --precision "$precision" \
    --program "$cuda/train_step_$precision" --exact-program "$cuda/train_step_fp32" \
    --configs "${CONFIGS:-$configs,widenet_b:256}" \
    --forms "${FORMS:-eager,eager-batched,model,graphs-batched}" --rounds 2 \
    --seconds "${STEP_SECONDS:-1}" --exports "$folder/exports" \
    --json "$folder/torch_$precision.json" || { failed=$((failed + 1)); return 1; }
}

parts=("$@")
[ $# -gt 0 ] || parts=(tests demo sanitizer torch)
for part in "${parts[@]}"; do
  case $part in
    tests)
      build build/examples/validate "$cuda/examples/validate" "$cuda/widenet_tests" &&
        section tests tests ;;
    demo)
      build build/examples/demo "$cuda/examples/demo" && section demo demo ;;
    sanitizer)
      section sanitizer sanitizer
      command -v compute-sanitizer > /dev/null || continue
      build "$cuda"/examples/{autograd,routing_by_hand,checkpoint,validate} || continue
      for tool in ${TOOLS:-memcheck initcheck synccheck racecheck}; do
        section "sanitizer_$tool" sanitizer_tool "$tool"
      done ;;
    torch)
      python=${PYTHON:-python3}
      if ! "$python" -c 'import numpy, safetensors, torch; assert torch.cuda.is_available()'; then
        echo "bench-gpu: $python has no torch that sees the GPU: PYTHON=... says which has" >&2
        failed=$((failed + 1))
        continue
      fi
      section torch torch
      build "$cuda"/train_step_fp32 || continue
      for precision in ${PRECISIONS:-fp32 tf32 bf16}; do
        build "$cuda/train_step_$precision" &&
          section "torch_$precision" torch_precision "$precision"
      done ;;
    *) echo "bench-gpu: the parts are tests, demo, sanitizer, torch; got $part" >&2; exit 2 ;;
  esac
done
echo "bench-gpu: $page, $failed failed"
[ "$failed" = 0 ]
