"""tools/gpu_check.sh with stand-ins for the GPU's tools: which steps run, and what it says of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = """#!/usr/bin/env bash
echo "python $*" >> "$CALLS"
case "$*" in
  *get_device_capability*) echo 9.0a ;;
  *"bench conv"*) sleep "${SLOW:-0}"; exit "${CONV_CODE:-0}" ;;
  *"import xdist"*) exit 1 ;;
esac
"""
LOG = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
"""
# The compiler leaves a program that fails for one of the sources.
NVCC = """#!/usr/bin/env bash
echo "nvcc $*" >> "$CALLS"
while [[ $# -gt 0 ]]; do [[ $1 == -o ]] && out=$2; shift; done
[[ -n ${out:-} ]] || exit 0
printf '#!/bin/sh\\necho "ran $0 $*" >> "$CALLS"\\n' > "$out"
[[ $out == *stem ]] && echo 'exit 3' >> "$out"
chmod +x "$out"
"""


@pytest.fixture
def check(tmp_path):
    bin = tmp_path / "bin"
    bin.mkdir()
    stand_ins = {"fakepython": PYTHON, "nvcc": NVCC, "nvidia-smi": LOG, "compute-sanitizer": LOG}
    for name, text in stand_ins.items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()

    def run(**settings):
        env = {
            **os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "CALLS": str(calls),
            "PYTHON": "fakepython", "CHECKS": str(tmp_path / "checks"), **settings,
        }  # fmt: skip
        result = subprocess.run(
            ["tools/gpu_check.sh", str(tmp_path / "out")],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        rows = {}
        for line in result.stdout.splitlines():
            if line[:5].strip() in ("ok", "FAIL", "LATE", "skip"):
                rows[line[24:].split("  ")[0].strip()] = line[:5].strip()
        return result, rows, calls.read_text(), tmp_path / "out"

    return run


def test_every_step_runs_and_one_failure_stops_nothing(check):
    result, rows, calls, out = check()
    assert result.returncode == 1, result.stdout + result.stderr
    assert rows.pop("check_stem") == "FAIL" and set(rows.values()) == {"ok"}, result.stdout
    programs = [path.stem for path in sorted((ROOT / "tests/cuda").glob("check_*.cu"))]
    for program in programs:
        assert f"ran {out.parent}/checks/{program}" in calls
        for tool in ("memcheck", "racecheck"):
            assert f"--tool {tool} --error-exitcode 9 {out.parent}/checks/{program}" in calls
    # Patterns with braces in a check's head are all expanded.
    builds = [line for line in calls.splitlines() if line.startswith("nvcc -O3")]
    (line,) = [line for line in builds if line.endswith("checks/check_mem -lcuda")]
    for folder in ("max_pool2d", "lrn", "lrn_pool", "relu", "global_avg_pool2d"):
        assert f"csrc/{folder}/" in line and "{" not in line and "*" not in line
    for suite in ("ops", "conv", "models", "train", "kernel"):
        assert f"cnnkernels.cli bench {suite}" in calls
    assert len(list((out / "logs").iterdir())) == len(rows) + 1
    assert all("arch=compute_90a,code=sm_90a" in line for line in builds)


def test_steps_and_groups_are_selected(check):
    result, rows, calls, _ = check(STEPS="conv tests")
    assert result.returncode == 0, result.stdout
    assert list(rows) == ["environment", "tests marked gpu", "bench conv"]
    assert "nvcc -O3" not in calls and "-m pytest -m gpu" in calls
    assert "bench conv --batch 64" in calls and "--budget 80" in calls
    _, rows, _, _ = check(STEPS="long")
    assert [name for name in rows if "own kernels" in name] and "bench ops" not in rows
    _, rows, calls, _ = check(STEPS="passes")
    assert list(rows) == ["environment", "tune", "bench models, optional passes"]
    assert "--passes projection,pair,merge+concat,merge+concat+split" in calls


def test_a_late_step_and_a_spent_budget_are_said(check):
    result, rows, _, _ = check(STEPS="conv train", BUDGET="3", SLOW="30")
    assert result.returncode == 1
    assert rows["bench conv"] == "LATE" and rows["bench train"] == "skip", result.stdout


def test_a_failing_benchmark_shows_the_end_of_its_log(check):
    result, rows, _, _ = check(STEPS="conv train", CONV_CODE="5")
    assert rows["bench conv"] == "FAIL" and rows["bench train"] == "ok"
    assert "(exit 5)" in result.stdout
