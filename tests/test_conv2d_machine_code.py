"""The convolution kernels' machine code: tensor-core and TMA instructions, registers, no spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cnnkernels import _lib

LIBRARY = Path(__file__).resolve().parent.parent / "cnnkernels/libcnnkernels_cuda.so"
KERNEL = re.compile(r"conv2d_(igemm|igemm_split|halo_res|halo_stream)_kernel")


def _cuobjdump() -> str:
    """The tool of the toolkit, or the copy Triton brings."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton")
        found = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
        if not Path(found).exists():
            pytest.skip("there is no cuobjdump")
    return found


@pytest.fixture(scope="module")
def instances() -> int:
    if not hasattr(_lib.plan, "conv_instances"):
        pytest.skip("the planner was not built")
    return len(_lib.plan.conv_instances())


@pytest.fixture(scope="module")
def tool():
    if not LIBRARY.exists():
        pytest.skip("the CUDA library was not built")
    return _cuobjdump()


def test_registers_and_stack(tool, instances):
    """384 threads enter with 168 registers, which setmaxnreg splits into 40 and 2 x 232."""
    out = subprocess.run([tool, "-res-usage", LIBRARY], capture_output=True, text=True).stdout
    rows = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+)", out)
    kernels = [(name, int(reg), int(stack)) for name, reg, stack in rows if KERNEL.search(name)]
    assert len(kernels) >= 3 * instances, "every instance in bf16, fp16 and tf32"
    assert all(reg == 168 and stack == 0 for _, reg, stack in kernels), kernels


def test_instructions(tool, instances):
    out = subprocess.run([tool, "-sass", LIBRARY], capture_output=True, text=True).stdout
    kernels = 0
    for text in out.split("Function : ")[1:]:
        name = text.split(None, 1)[0]
        if not KERNEL.search(name):
            continue
        kernels += 1
        assert "HGMMA" in text and "UTMALDG" in text and "UTMASTG" in text, name
        assert "USETMAXREG" in text and "ACQBULK" in text, name  # and griddepcontrol.wait
        assert not re.search(r"\b(LDL|STL)\b", text), f"{name} uses local memory"
    assert kernels >= 3 * instances
