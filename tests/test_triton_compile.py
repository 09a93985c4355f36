"""The Triton kernels compile for sm_80 and sm_90 without a GPU, to the instructions they are
written for, and every config of the config space fits in shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnkernels.tuning import space

pytest.importorskip("triton")


# Every kernel of the config space takes minutes to compile; else a sample of them is.
EVERY = ["all"] if os.environ.get("CNNKERNELS_SLOW") else []


def built(what: str, capability: int) -> list[dict]:
    """Run triton_build.py; a separate process, because ours has the interpreter on."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_build.py")), what, str(capability),
         *EVERY], env=env, capture_output=True, text=True, timeout=900 if EVERY else 280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert kernels
    return kernels


@pytest.mark.timeout(1000)
def test_descriptor_kernels_use_tma_and_wgmma_and_fit():
    kernels = built("descriptors", 90)
    assert {k["config"]["kind"] for k in kernels} == {"matrix", "taps", "stem"}
    for kernel in kernels:
        assert kernel["wgmma"] >= 1 and kernel["mma"] == 0, kernel
        assert kernel["dots_from_registers"] == 0, kernel  # both operands from shared memory
        assert kernel["tma_loads"] >= 2 and kernel["tma_stores"] >= 1, kernel
        # The estimate that the config space keeps within the limit (test_tuning.py) holds.
        assert kernel["shared"] <= kernel["estimate"] <= space.SMEM_LIMIT[90], kernel
        assert kernel["spills"] == 0, kernel


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("capability", [80, 90])
def test_pointer_kernels_use_tensor_cores_and_fit(capability):
    for kernel in built("pointers", capability):
        config, (channels, _, taps) = kernel["config"], kernel["layer"]
        assert kernel["shared"] <= space.SMEM_LIMIT[capability], kernel
        assert kernel["spills"] <= 128, kernel  # with a residual, in the epilogue: once per tile
        if kernel["dtype"] == "fp32":
            continue
        narrow = kernel["nchw"] and config["block_n"] < 64  # a warpgroup multiplies 64 rows
        assert kernel["mma" if capability == 80 or narrow else "wgmma"] >= 1, kernel
        one_step = taps == 1 and channels <= config["block_k"]
        if not (kernel["nchw"] or config["flat"] or one_step):
            assert kernel["async_loads"] >= 1, kernel  # 16-byte copies to shared memory


@pytest.mark.parametrize("capability", [80, 90])
def test_other_kernels_compile(capability):
    assert len(built("others", capability)) == 6


def test_fused_pairs_use_tma_and_wgmma_and_fit():
    for kernel in built("pairs", 90):
        assert kernel["wgmma"] >= 2 and kernel["tma_loads"] >= 4 and kernel["tma_stores"] >= 2
        assert kernel["shared"] <= space.SMEM_LIMIT[90] and kernel["spills"] == 0, kernel
        assert kernel["waits"] == (not kernel["config"]["prefetch"]), kernel
