"""The compiled leaf ops: all have a schema; those that no public function reaches (slices of wider
outputs, two outputs) compute what they should."""

from __future__ import annotations

import pytest
import torch

from cnnkernels import _lib
from cnnkernels.testing import compare, oracles

needs_kernels = pytest.mark.skipif(
    not _lib.has_leaf("_conv2d_cuda_out"), reason="this build has no tensor-core kernels"
)


def test_every_implementation_has_a_schema():
    """An implementation whose schema is missing registers without an error and can't be called."""
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("cnnkernels::"):
            assert _lib.has_leaf(name.removeprefix("cnnkernels::").split(".")[0]), name


def wide(channels: int) -> torch.Tensor:
    """NaN in [2, channels, 14, 14], to see what is written."""
    out = torch.full((2, channels, 14, 14), torch.nan, device="cuda", dtype=torch.bfloat16)
    return out.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def operands():
    """An input that is a slice of a wider one, weight, bias and the exact result."""
    x = torch.randn(2, 96, 14, 14, device="cuda").bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)[:, 16:80]
    weight = torch.randn(176, 64, 1, 1, device="cuda").bfloat16() / 8
    bias = torch.randn(176, device="cuda").bfloat16()
    return x, weight, bias, oracles.relu(oracles.conv2d(x, weight, bias))


GEOMETRY = [1, 1], [0, 0], [1, 1]


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("instance", ["", "igemm_128x64", "igemm_64x128"])
@pytest.mark.parametrize("split", [8, 64, 112, 160])
def test_two_outputs(operands, split, instance):
    x, weight, bias, exact = operands
    first, second = wide(192), wide(200)
    torch.ops.cnnkernels._conv2d_cuda_split(
        x, weight, bias, *GEOMETRY, True, instance, split, first, 16, second, 8
    )
    got = torch.cat([first[:, 16 : 16 + split], second[:, 8 : 8 + 176 - split]], 1)
    assert compare.relative_error(got, exact) <= 5e-3
    assert first.isnan().sum() == first.numel() - exact[:, :split].numel()
    assert second.isnan().sum() == second.numel() - exact[:, split:].numel()


@pytest.mark.gpu
@needs_kernels
def test_slice_of_an_output(operands):
    x, weight, bias, exact = operands
    out = wide(256)
    torch.ops.cnnkernels._conv2d_cuda_out(x, weight, bias, None, *GEOMETRY, 1, True, "", out, 40)
    assert compare.relative_error(out[:, 40:216], exact) <= 5e-3
    assert out.isnan().sum() == out.numel() - exact.numel()


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize(
    "split, message", [(0, "split is 0"), (176, "split is 176"), (4, "split is 4")]
)
def test_bad_split(operands, split, message):
    x, weight, bias, _ = operands
    with pytest.raises(RuntimeError, match=message):
        torch.ops.cnnkernels._conv2d_cuda_split(
            x, weight, bias, *GEOMETRY, True, "", split, wide(192), 0, wide(192), 0
        )
