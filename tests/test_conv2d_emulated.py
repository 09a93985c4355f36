"""The Hopper convolutions' own source run on the CPU (tests/cuda/emulate), against fp64: results,
output bounds, deadlocks, missing waits. Needs g++ and CUDA's headers, no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("CNNKERNELS_SLOW"), reason="half a minute; CNNKERNELS_SLOW=1 runs it"
    ),
]
# Check programs and their arguments. The emulated GPU has 3 multiprocessors: several tiles each.
RUNS = [
    "check_stem small",
    "check_conv2d bf16 limit=5e7 instance=halo",
    "check_conv2d bf16 limit=2.2e7 instance=_pp rings",
    "check_conv2d f32 limit=5e7 instance=halo",
    "check_conv2d bf16 limit=2.2e7 instance=igemm_128x64",
    "check_conv2d f32 limit=6e6 instance=_pp rings",
    "check_conv2d bf16 limit=6e6",
    "check_conv2d f32 limit=6e6",
    "check_conv2d f16 limit=1.1e7 instance=_k",
    "check_conv2d f16 limit=4e6 instance=igemm rings",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{run: future of its finished process}."""
    nvcc = shutil.which("nvcc")
    if shutil.which("g++") is None or nvcc is None:
        pytest.skip("there is no g++ or no nvcc (for its headers)")
    plan = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    top = next(line.split("=", 1)[1] for line in plan.splitlines() if "TOP=" in line)
    out = tmp_path_factory.mktemp("emulated")
    # The emulated headers come before those in csrc/.
    flags = ["-O1", "-std=c++17", "-w", "-Wno-psabi", "-DCNNKERNELS_EMULATED"]
    flags += [
        "-Itests/cuda/emulate",
        "-Icsrc",
        "-isystem",
        f"{top}/include",
        "-include",
        "emulator.h",
    ]

    def compile_one(source: Path) -> Path:
        target = out / f"{source.stem}.o"
        command = ["g++", *flags, "-x", "c++", "-c", source, "-o", target]
        subprocess.run(command, cwd=ROOT, check=True)
        return target

    def run(arguments: str) -> subprocess.CompletedProcess:
        program, *rest = arguments.split()
        return subprocess.run([out / program, *rest], capture_output=True, text=True, timeout=600)

    tests = [ROOT / f"tests/cuda/{name}" for name in ("check_stem.cu", "check_conv2d.cu")]
    kernels = sorted((ROOT / "csrc/conv2d").glob("*_sm90.cu"))
    emulator = (ROOT / "tests/cuda/emulate").glob("*.cpp")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*kernels, *tests, *emulator]))
        for test in tests:
            own = [o for o in objects if "check" not in o.stem or o.stem == test.stem]
            subprocess.run(["g++", *own, "-o", out / test.stem], check=True)
        yield {arguments: pool.submit(run, arguments) for arguments in RUNS}


@pytest.mark.parametrize("arguments", RUNS)
def test_emulated(runs: dict[str, Future], arguments):
    ran = runs[arguments].result()
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-500:]
    lines = ran.stdout.splitlines()
    assert lines[-1].startswith("all ok") or lines[-1].endswith(" 0 failed")
    assert len(lines) > 3
