#!/usr/bin/env bash
# Checks and measures everything that needs an NVIDIA GPU, without a network, in under 8 minutes.
#   tools/gpu_check.sh OUT
# A carried build (cnnkernels/*.so) is used where it loads; otherwise it is built in place for this GPU.
# Cheapest first: build, stand-alone check programs under compute-sanitizer, tests, benchmarks. Every
# step has a time limit, a failing step does not stop the next, and OUT gets a log and the JSON files.
#
# PYTHON   interpreter with torch, triton, pybind11, pytest (python3)
# BUDGET   seconds in all (480)
# STEPS    which steps to run (build checks tests ops conv models train); "more" adds the long tables
# CHECKS   folder with built check programs; without it they are built from tests/cuda/*.cu
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${1:?usage: tools/gpu_check.sh OUT}
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-480}
STEPS=${STEPS:-build checks tests ops conv models train}
CHECKS=${CHECKS:-build/checks}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
LOG=$OUT/log.txt
SUMMARY=$OUT/summary.txt
: >"$LOG"
: >"$SUMMARY"
START=$SECONDS
FAILED=0
export PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1 COLUMNS=170
BENCH="$PYTHON -m cnnkernels.cli bench"

say() { echo "$*" | tee -a "$SUMMARY"; }
wanted() { [[ " $STEPS " == *" $1 "* ]]; }

# step NAME LIMIT COMMAND...: run under a time limit, output to the log, one line of result.
step() {
  local name=$1 limit=$2 left=$((BUDGET - (SECONDS - START))) begin=$SECONDS code
  shift 2
  if ((left < 10)); then
    say "skip  $name: the budget of $BUDGET s is spent"
    FAILED=1
    return 1
  fi
  ((limit = limit < left ? limit : left))
  printf '\n===== %s (limit %s s): %s\n' "$name" "$limit" "$*" >>"$LOG"
  timeout -k 10 "$limit" "$@" >>"$LOG" 2>&1
  code=$?
  case $code in
    0) say "ok    $name: $((SECONDS - begin)) s" ;;
    124 | 130 | 137)
      say "LATE  $name: stopped after $((SECONDS - begin)) s; what it measured is saved"
      FAILED=1
      ;;
    *)
      say "FAIL  $name: exit $code after $((SECONDS - begin)) s"
      tail -n 15 "$LOG" | cut -c1-200
      FAILED=1
      ;;
  esac
  return $code
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader
  command -v nvcc >/dev/null && nvcc --version | tail -n 2
  "$PYTHON" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__,
    "cuDNN", torch.backends.cudnn.version(), torch.cuda.get_device_name())'
}

loads() { # cpu, cuda or plan: whether that compiled part loads here
  "$PYTHON" - "$1" <<'PY'
import sys
from cnnkernels import _lib
reason = getattr(_lib, f"{sys.argv[1]}_missing")
print(sys.argv[1], "loads" if reason is None else reason)
sys.exit(reason is not None)
PY
}

build() { # only what does not load
  local targets=()
  for part in cpu cuda plan; do loads $part || targets+=("$part"); done
  ((${#targets[@]})) || return 0
  local arch
  arch=$("$PYTHON" -c 'import torch; c = torch.cuda.get_device_capability()
print(f"{c[0]}.{c[1]}" + ("a" if c[0] >= 9 else ""))') || return 1
  CNNKERNELS_TARGETS=$(IFS=';'; echo "${targets[*]}") TORCH_CUDA_ARCH_LIST=$arch \
    "$PYTHON" setup.py build_ext --inplace || return 1
  for part in "${targets[@]}"; do loads "$part" || return 1; done
}

build_check() { # SOURCE: the sources it links are named in its head comment
  local name sources
  name=$(basename "$1" .cu)
  sources=$(head -n 12 "$1" | grep -o 'csrc/[^ ]*\.cu\b' | sort -u)
  # shellcheck disable=SC2086  # several words on purpose
  nvcc -O3 -std=c++17 -Icsrc --expt-relaxed-constexpr -gencode arch=compute_90a,code=sm_90a \
    "$1" $sources -o "$CHECKS/$name" -lcuda
}

build_checks() {
  local code=0
  mkdir -p "$CHECKS"
  for source in tests/cuda/check_*.cu; do
    [[ -x $CHECKS/$(basename "$source" .cu) ]] || build_check "$source" &
  done
  for job in $(jobs -p); do wait "$job" || code=1; done
  return $code
}
export -f environment loads build build_check build_checks
export PYTHON CHECKS
in_shell() { step "$1" "$2" bash -c "set -uo pipefail; $3"; }

in_shell environment 60 environment || { say "no usable NVIDIA GPU, torch or triton here: nothing to check"; exit 1; }
wanted build && in_shell build 280 build
step doctor 60 "$PYTHON" -m cnnkernels.cli doctor

if wanted checks && compgen -G "tests/cuda/check_*.cu" >/dev/null; then
  in_shell "check programs: build" 120 build_checks
  for source in tests/cuda/check_*.cu; do
    program=$CHECKS/$(basename "$source" .cu)
    [[ -x $program ]] || continue
    step "$(basename "$program")" 30 "$program" || continue
    if command -v compute-sanitizer >/dev/null; then
      for tool in memcheck racecheck; do
        step "$(basename "$program") under $tool" 45 \
          compute-sanitizer --tool "$tool" --error-exitcode 9 "$program"
      done
    fi
  done
fi

if wanted tests; then
  parallel=$("$PYTHON" -c 'import xdist' 2>/dev/null && echo "-n 4")
  # shellcheck disable=SC2086
  step "tests marked gpu" 150 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider $parallel \
    -o timeout=100 --tb=short
  grep -aE '^(FAILED|ERROR) |[0-9]+ (passed|failed)' "$LOG" | tail -n 25 | cut -c1-180 | tee -a "$SUMMARY"
fi

wanted conv && step "bench conv, batch 64" 110 $BENCH conv --batch 64 --seconds 0.2 --out "$OUT"
wanted ops && step "bench ops" 80 $BENCH ops --dtype bf16 --quick --out "$OUT"
wanted models && step "bench models" 90 $BENCH run --quick --photographs --no-layers --out "$OUT"
wanted train && step "bench train" 60 $BENCH train --quick --out "$OUT"
if wanted more; then
  step "bench conv, batch 256" 150 $BENCH conv --batch 256 --seconds 0.2 --out "$OUT/more"
  step "bench conv, other precisions" 200 $BENCH conv --batch 64 --dtype fp16,tf32 \
    --seconds 0.2 --no-residual --out "$OUT/precisions"
  step "bench ops, all" 200 $BENCH ops --dtype bf16,fp32,fp16 --seconds 0.3 --out "$OUT/more"
fi

for file in "$OUT"/conv.json "$OUT"/ops.json "$OUT"/bench.json "$OUT"/train.json; do
  [[ -f $file ]] && $BENCH show "$file" --brief 2>>"$LOG" | tee -a "$SUMMARY"
done
say "total $((SECONDS - START)) s; log: $LOG"
exit $FAILED
