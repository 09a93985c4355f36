"""relu: torch.relu's values and gradient, one bit per element kept."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnkernels
from cnnkernels.testing.saved import saved_bytes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def same_bits(a, b):
    return torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_are_torchs(device, backend, dtype):
    for shape in [(0, 3, 4, 4), (2, 3, 5, 7), (17,), (), (3, 16, 9, 9)]:
        values = torch.randn(shape, device=device).to(dtype)
        if values.numel() > 20:
            values.view(-1)[3:6] = torch.tensor([torch.nan, -torch.inf, -0.0])
        grad = torch.randn(shape, device=device).to(dtype)
        results = []
        for f in (cnnkernels.relu, torch.relu):
            x = values.clone().requires_grad_()
            with cnnkernels.use(backend):
                y = f(x)
                y.backward(grad)
                assert same_bits(f(values), y)
            results.append((y, x.grad))
        assert same_bits(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    n=st.integers(0, 3), c=st.integers(1, 9), h=st.integers(1, 6), w=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES), channels_last=st.booleans(), grad_last=st.booleans(),
    offset=st.integers(0, 9),
)  # fmt: skip
def test_any_geometry(n, c, h, w, dtype, channels_last, grad_last, offset):
    def draw(last):
        flat = torch.randn(offset + n * c * h * w).to(dtype)[offset:]
        return flat.view(n, h, w, c).permute(0, 3, 1, 2) if last else flat.view(n, c, h, w)

    x, grad = draw(channels_last).requires_grad_(), draw(grad_last)
    y = cnnkernels.relu(x)
    y.backward(grad)
    assert torch.equal(y, torch.relu(x))
    assert y.is_contiguous(memory_format=cnnkernels.ops._args.memory_format(x))
    assert torch.equal(x.grad, torch.where(x > 0, grad, 0))


def test_keeps_one_bit_per_element_for_backward():
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    assert saved_bytes(functools.partial(cnnkernels.relu, x)) == x.numel() // 8


def test_gradcheck():
    x = torch.randn(2, 3, 3, dtype=torch.double, requires_grad=True)
    for f in (cnnkernels.relu, torch.ops.cnnkernels.relu):
        assert torch.autograd.gradcheck(f, x)
        assert torch.autograd.gradgradcheck(f, x)


def test_bad_input():
    with pytest.raises(ValueError, match=r"input has dtype torch\.int32"):
        cnnkernels.relu(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        cnnkernels.relu([1.0])


def test_compiled_and_exported():
    class Net(torch.nn.Module):
        def forward(self, x):
            return cnnkernels.relu(x * 2) + 1

    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    expected = Net()(x)
    compiled = torch.compile(Net(), fullgraph=True)(x)
    assert torch.equal(compiled, expected)
    assert torch.equal(
        torch.autograd.grad(compiled.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0]
    )
    assert torch.equal(torch.export.export(Net(), (x.detach(),)).module()(x), expected)


def opcheck_cases():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, 6, 6, dtype=dtype)
        for a in (x, x.to(memory_format=torch.channels_last)):
            yield "relu", (a.clone().requires_grad_(),)
            yield "_relu_with_mask", (a.clone().requires_grad_(),)
