"""The Hopper convolutions' own source run on the CPU (tests/emulate), against fp64: results, output
bounds, deadlocks, buffers given back too early. Needs g++ and CUDA's headers, no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not os.environ.get("CNNKERNELS_SLOW"), reason="minutes; CNNKERNELS_SLOW=1 runs it"
)


@pytest.fixture(scope="module")
def check(tmp_path_factory) -> Path:
    """tests/cuda/check_conv2d.cu and the kernels, compiled for the CPU."""
    nvcc = shutil.which("nvcc")
    if shutil.which("g++") is None or nvcc is None:
        pytest.skip("there is no g++ or no nvcc (for its headers)")
    plan = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    top = next(line.split("=", 1)[1] for line in plan.splitlines() if "TOP=" in line)
    out = tmp_path_factory.mktemp("emulated")
    sources = [ROOT / "tests/emulate/emulator.cpp", ROOT / "tests/cuda/check_conv2d.cu"]
    sources += [p for p in (ROOT / "csrc/conv2d").glob("*_sm90.cu") if "stem" not in p.name]
    # The emulated headers come before those in csrc/.
    include = [f"-I{ROOT / folder}" for folder in ("tests/emulate", "csrc")]
    flags = ["-O2", "-std=c++17", "-w", "-DCNNKERNELS_EMULATED", "-include", "emulator.h"]

    def compile_one(source: Path) -> Path:
        target = out / f"{source.stem}.o"
        command = ["g++", *flags, *include, "-isystem", f"{top}/include", "-x", "c++"]
        subprocess.run([*command, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run(["g++", *objects, "-o", out / "check"], check=True)
    return out / "check"


@pytest.mark.parametrize(
    "arguments",
    [
        ["bf16", "limit=6e6"],
        ["f32", "limit=6e6"],
        ["f16", "limit=1.1e7", "instance=_k"],
        ["bf16", "limit=1.2e7", "instance=halo"],
        ["f32", "limit=1.2e7", "instance=halo_stream"],
        ["bf16", "limit=2.2e7", "instance=igemm_128x64"],
    ],
    ids=" ".join,
)
def test_emulated(check, arguments):
    ran = subprocess.run([check, *arguments], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-2000:]
    lines = ran.stdout.splitlines()
    assert lines[-1].startswith("all ok") and len(lines) > 3
