"""The memory-bound CUDA kernels run on the CPU: their sources, compiled by the host's C++ compiler
against tests/cuda/host (a fiber per CUDA thread), pass the same check program as on a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST = ROOT / "tests/cuda/host"
CHECK = ROOT / "tests/cuda/check_mem.cu"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
# No contraction of a * b + c: what must be one rounding says fmaf.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-w"]
FLAGS += [f"-I{folder}" for folder in (HOST, ROOT / "csrc", CHECK.parent)]


def translated(source: str) -> str:
    """CUDA's two extensions of C++ syntax as calls: dynamic shared memory and launches."""
    source = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];",
        r"auto* \2 = static_cast<\1*>(cuda_host::shared());",
        source,
    )
    return re.sub(
        r"(\w+(?:<[^<>;]*>)?)\s*<<<(.*?)>>>\s*\(",
        r"cuda_host::launch(\1, \2)(",
        source,
        flags=re.DOTALL,
    )


def kernel_sources() -> list[Path]:
    """What the check program says it is linked with."""
    head = CHECK.read_text().split("#include")[0]
    stems = re.search(r"csrc/\{(.*?)\}/\*\.cu", head)[1].split(",")
    return [path for stem in stems for path in sorted((ROOT / "csrc" / stem).glob("*.cu"))]


def build(folder: Path) -> Path:
    def compile(source: Path, output: str, *options: str) -> Path:
        command = [COMPILER, *FLAGS, *options, source, "-o", folder / output]
        subprocess.run(command, check=True)
        return folder / output

    def compiled(path: Path) -> Path:
        source = folder / f"{path.stem}.cpp"
        source.write_text(translated(path.read_text()))
        return compile(source, f"{path.stem}.o", "-c", "-include", folder / "prefix.h", "-x", "c++")

    prefix = folder / "prefix.h"  # compiled once: most of each file's time is its headers
    prefix.write_text('#include "execution.h"\n')
    compile(prefix, "prefix.h.gch", "-x", "c++-header")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [CHECK, *kernel_sources()]))
    program = folder / "check_mem"
    subprocess.run([COMPILER, *objects, "-o", program], check=True)
    return program


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_kernels_pass_their_check(tmp_path):
    program = build(tmp_path)
    runs = [
        subprocess.Popen([program], env={**os.environ, **order}, stdout=subprocess.PIPE, text=True)
        for order in ({}, {"CUDA_HOST_REVERSED": "1"})
    ]
    for run in runs:
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0 and " 0 failed" in output, output
