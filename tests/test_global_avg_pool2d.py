"""global_avg_pool2d against fp64 and torch."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnkernels
from cnnkernels.testing import compare, oracles
from cnnkernels.testing.saved import saved_bytes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = ["cuda", "cpu", "triton", "reference"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_against_fp64(device, backend, dtype, channels_last):
    if (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
        pytest.skip("Triton's interpreter truncates when it converts to bfloat16")
    for shape in [(2, 33, 7, 7), (0, 8, 4, 4), (1, 5, 1, 1), (3, 64, 13, 9), (1, 1, 5, 3)]:
        # Positive values: the mean does not cancel, so ulps mean something.
        x = (torch.rand(shape, device=device) + 0.1).to(dtype)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        with cnnkernels.use(backend):
            out = cnnkernels.global_avg_pool2d(x)
        assert out.dtype == dtype
        # fp32 and fp64 also carry the roundings of the sum.
        ulps = 2.0 if dtype.itemsize == 2 else 8.0
        compare.assert_close(out, oracles.global_avg_pool2d(x), ulps=ulps)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    n=st.integers(0, 3), c=st.integers(1, 37), h=st.integers(1, 9), w=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES), channels_last=st.booleans(), offset=st.integers(0, 9),
    backend=st.sampled_from(["auto", "reference"]),
)  # fmt: skip
def test_any_geometry(n, c, h, w, dtype, channels_last, offset, backend):
    flat = torch.randn(offset + n * c * h * w).to(dtype)[offset:]
    x = flat.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else flat.view(n, c, h, w)
    x.requires_grad_()
    grad = torch.randn(n, c, 1, 1).to(dtype)
    with cnnkernels.use(backend):
        out = cnnkernels.global_avg_pool2d(x)
        out.backward(grad)
    expected = oracles.global_avg_pool2d(x.detach())
    room = 4 * torch.finfo(dtype).eps * oracles.global_avg_pool2d(x.detach().abs())
    assert out.shape == (n, c, 1, 1)
    assert bool(((out - expected).abs() <= room).all())
    expected_grad = (grad.double() / (h * w)).expand(x.shape)
    compare.assert_close(x.grad, expected_grad, ulps=2.0)


def test_special_values_and_forms():
    x = torch.randn(2, 4, 3, 3)
    x[0, 1, 0, 0], x[0, 2, 0, 0] = torch.nan, torch.inf
    out = cnnkernels.global_avg_pool2d(x)
    torch.testing.assert_close(out, F.adaptive_avg_pool2d(x, 1), equal_nan=True)
    assert cnnkernels.global_avg_pool2d(x[0]).shape == (4, 1, 1)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    assert saved_bytes(functools.partial(cnnkernels.global_avg_pool2d, x)) == 0


def test_gradcheck():
    x = torch.randn(2, 2, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(cnnkernels.global_avg_pool2d, x)
    assert torch.autograd.gradgradcheck(cnnkernels.global_avg_pool2d, x)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 2), r"input has shape \[2, 2\]; it must have 3 or 4"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), "input has dtype torch.int64"),
        (torch.zeros(1, 1, 0, 2), "height and width can't be 0"),
    ],
)
def test_bad_input(x, message):
    with pytest.raises(ValueError, match=message):
        cnnkernels.global_avg_pool2d(x)


def test_compiled_and_exported():
    class Net(torch.nn.Module):
        def forward(self, x):
            return cnnkernels.global_avg_pool2d(x * 2) + 1

    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    expected = Net()(x)
    compiled = torch.compile(Net(), fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0]
    )
    torch.testing.assert_close(torch.export.export(Net(), (x.detach(),)).module()(x), expected)


def opcheck_cases():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, 4, 5, dtype=dtype)
        for a in (x, x.to(memory_format=torch.channels_last)):
            yield "global_avg_pool2d", (a.clone().requires_grad_(),)
        for channels_last in (False, True):
            grad = torch.randn(2, 3, 1, 1, dtype=dtype, requires_grad=True)
            yield "_global_avg_pool2d_backward", (grad, [2, 3, 4, 5], channels_last)
