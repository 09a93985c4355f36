"""The convolution kernels' machine code: tensor-core and TMA instructions, registers, no spills."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cnnkernels import _lib

LIBRARY = Path(__file__).resolve().parent.parent / "cnnkernels/libcnnkernels_cuda.so"
KERNEL = re.compile(r"conv2d_(igemm|igemm_split|igemm_pingpong|halo_res|halo_stream)_kernel")


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


@pytest.fixture(scope="module")
def kernels(tool):
    """{name: (registers, stack, machine code)} of every convolution kernel."""
    options = {"capture_output": True, "text": True}
    usage = subprocess.run([tool, "-res-usage", LIBRARY], **options).stdout
    sass = subprocess.run([tool, "-sass", LIBRARY], **options).stdout.split("Function : ")[1:]
    code = {text.split(None, 1)[0]: text for text in sass}
    rows = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+)", usage)
    return {name: (int(reg), int(stack), code[name]) for name, reg, stack in rows if name in code}


def check_code(name, text):
    assert "HGMMA" in text and "UTMASTG" in text and "USETMAXREG" in text, name
    assert not re.search(r"\b(LDL|STL)\b", text), f"{name} uses local memory"


def test_registers_and_instructions(kernels, instances):
    """384 threads enter with 168 registers, which setmaxnreg splits into 40 and 2 x 232."""
    found = [name for name in kernels if KERNEL.search(name)]
    assert len(found) >= 3 * instances, "every instance in bf16, fp16 and tf32"
    for name in found:
        registers, stack, text = kernels[name]
        assert (registers, stack) == (168, 0), name
        check_code(name, text)
        assert "UTMALDG" in text and "ACQBULK" in text, name  # and griddepcontrol.wait
        if "pingpong" in name:  # a warpgroup hands its turn over without waiting
            assert "BAR.ARV" in text, name


def test_stems(kernels):
    """512 threads have 128 registers, 384 have 168 (then 4 x 32 x 152 + 256 x 176)."""
    found = [name for name in kernels if "conv2d_stem_kernel" in name]
    assert len(found) >= 24 + 15, "those of one input type and layout, and those of any"
    for name in found:
        registers, stack, text = kernels[name]
        wide = "Li224E" in name or "Li112ELi2E" in name  # pixels, tiles of 64 channels
        assert (registers, stack) == (168 if wide else 128, 0), name
        check_code(name, text)
        if "StemGeometryIf" in name:
            assert ".TF32" in text, name
        if "Lb1EEENS_12StemReadsAny" in name:  # pooled: the neighbouring lane's columns
            assert "SHFL" in text, name
