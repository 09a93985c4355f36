"""The CPU kernels in each instruction set that this processor has: CNNKERNELS_CPU_ISA picks one per
process, so each runs in a process of its own (this file's main)."""

from __future__ import annotations

import itertools
import os
import pathlib
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import cnnkernels
from cnnkernels.testing import compare, oracles

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run_in(isa: str) -> subprocess.CompletedProcess:
    root = pathlib.Path(cnnkernels.__file__).parents[1]
    env = {**os.environ, "CNNKERNELS_CPU_ISA": isa, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_results_are_torchs(isa):
    done = run_in(isa)
    if "as far as the processor has them" in done.stderr:
        pytest.skip(f"no {isa} here")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only")
def test_unknown_name_is_an_error():
    assert (
        "CNNKERNELS_CPU_ISA is mmx; allowed are portable, avx2 and avx512" in run_in("mmx").stderr
    )


def hard_values(shape, dtype, layout):
    """At an odd offset: ties, zeros of both signs, NaN, infinities and subnormals."""
    n, c, h, w = shape
    flat = torch.randint(-3, 4, (1 + n * c * h * w,)).to(dtype)
    for i, value in enumerate(
        (torch.nan, torch.inf, -torch.inf, -0.0, torch.finfo(dtype).tiny / 4)
    ):
        flat[torch.rand(flat.shape) < 0.02 * (i + 1)] = value
    x = flat[1:]
    if layout == torch.channels_last:
        return x.view(n, h, w, c).permute(0, 3, 1, 2)
    return x.view(shape)


def check_elementwise(x, z):
    a = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = cnnkernels.add_relu(a, z)
    compare_bits(out, torch.relu(x + z))
    grad = torch.randn(x.shape).to(x.dtype)
    (dx,) = torch.autograd.grad(out, a, grad)
    assert torch.equal(dx, torch.where(~(x + z <= 0), grad, 0))
    masked, mask = torch.ops.cnnkernels._relu_mask_cpu(x)
    compare_bits(masked, torch.relu(x))
    dx = torch.ops.cnnkernels._relu_backward_mask_cpu(torch.ones_like(x), mask)
    assert torch.equal(dx, (~(x <= 0)).to(x.dtype))


def compare_bits(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def check_lrn(x):
    for size in (5, 4):
        out = cnnkernels.local_response_norm(x, size, 1e-2, 0.75, 2.0)
        expected = oracles.local_response_norm(x.double(), size, 1e-2, 0.75, 2.0)
        compare.assert_close(out, expected, ulps=2.0)


def check_pool(x, geometry):
    values = F.max_pool2d(x, *geometry)
    with torch.no_grad():
        compare_bits(cnnkernels.max_pool2d(x, *geometry), values)
    a = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out, index = cnnkernels.max_pool2d(a, *geometry, return_indices=True)
    expected_index = F.max_pool2d(x.contiguous(), *geometry, return_indices=True)[1]
    compare_bits(out, values)
    assert torch.equal(index, expected_index)
    grad = torch.randint(-4, 5, out.shape).to(x.dtype)
    (dx,) = torch.autograd.grad(out, a, grad)
    assert torch.equal(dx.double(), oracles.max_pool2d_backward(grad, index, x.shape))


def main():
    torch.manual_seed(0)
    check_lrn(torch.randn(2, 8, 37, 41))  # enough pixels for long runs, and a rest
    # Fewer channels and columns than a block has elements, one block, several and a rest.
    shapes = [(1, 3, 5, 7), (2, 16, 9, 16), (1, 21, 12, 37), (1, 40, 35, 33)]
    for shape, dtype, layout in itertools.product(shapes, DTYPES, LAYOUTS):
        x, z = (hard_values(shape, dtype, layout) for _ in range(2))
        check_elementwise(x, z)
        check_lrn(torch.randn(shape).to(dtype).contiguous(memory_format=layout))
        for geometry in [
            (3, 2),
            (3, 2, 1),
            (2, 2),
            (2, 2, 0, 1, True),
            (3, 1, 1),
            (4, 3, 1, 1, True),
        ]:
            check_pool(x, geometry)


if __name__ == "__main__":
    main()
