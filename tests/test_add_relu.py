"""add_relu against fp64 and torch: values, gradients, layouts, dtypes, every implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnkernels
from cnnkernels.testing import compare, oracles

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def same_bits(a, b):
    return torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0)) and torch.equal(
        a.isnan(), b.isnan()
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "cpu", "triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bit_equal_to_torch(device, backend, dtype):
    if (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
        pytest.skip("Triton's interpreter truncates when it converts to bfloat16")
    for shape in [(0, 3, 4, 4), (2, 3, 5, 7), (1, 1, 1, 1), (3, 16, 9, 9), (17,)]:
        a = torch.randn(shape, device=device).to(dtype)
        b = torch.randn(shape, device=device).to(dtype)
        if a.numel() > 20:
            a.view(-1)[3] = torch.nan
            b.view(-1)[5], a.view(-1)[5] = torch.inf, -torch.inf
        with cnnkernels.use(backend):
            out = cnnkernels.add_relu(a, b)
        assert same_bits(out, torch.relu(a + b))
        torch_out = torch.relu(a + b)
        if not torch_out.isnan().any():
            compare.assert_close(out, oracles.relu(a.double() + b.double()), torch_out=torch_out)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    n=st.integers(0, 3), c=st.integers(1, 9), h=st.integers(1, 6), w=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES), channels_last=st.booleans(), other_last=st.booleans(),
    offset=st.integers(0, 9), with_grad=st.booleans(),
)  # fmt: skip
def test_any_geometry(n, c, h, w, dtype, channels_last, other_last, offset, with_grad):
    def draw(last):
        # A view at an odd offset into a larger storage, in either memory format.
        flat = torch.randn(offset + n * c * h * w).to(dtype)[offset:]
        return flat.view(n, h, w, c).permute(0, 3, 1, 2) if last else flat.view(n, c, h, w)

    a, b = draw(channels_last), draw(other_last)
    a.requires_grad_(with_grad)
    out = cnnkernels.add_relu(a, b)
    expected = torch.relu(a.detach() + b)
    assert torch.equal(out, expected)
    assert out.stride() == torch.empty_like(a).stride()
    if with_grad:
        grad = torch.randn(n, c, h, w).to(dtype)
        out.backward(grad)
        assert torch.equal(a.grad, torch.where(expected > 0, grad, 0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_backward_is_torchs(device, backend, dtype):
    a = torch.randn(2, 5, 7, 3, device=device).to(dtype).requires_grad_()
    b = torch.randn(2, 5, 7, 3, device=device).to(dtype).requires_grad_()
    grad = torch.randn(2, 5, 7, 3, device=device).to(dtype)
    with cnnkernels.use(backend):
        cnnkernels.add_relu(a, b).backward(grad)
    ours = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    torch.relu(a + b).backward(grad)
    assert torch.equal(ours[0], a.grad) and torch.equal(ours[1], b.grad)


def test_keeps_one_bit_per_element_for_backward():
    a = torch.randn(2, 8, 8, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cnnkernels.add_relu(a, torch.randn(2, 8, 8, 8))
    assert sum(t.numel() * t.element_size() for t in saved) == a.numel() // 8


def test_gradcheck():
    a, b = (torch.randn(2, 3, 3, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(cnnkernels.add_relu, (a, b))
    assert torch.autograd.gradgradcheck(cnnkernels.add_relu, (a, b))
    assert torch.autograd.gradcheck(torch.ops.cnnkernels.add_relu, (a, b))


def test_autocast_promotes():
    a = torch.randn(2, 3, dtype=torch.bfloat16)
    b = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert cnnkernels.add_relu(a, b).dtype == torch.float32
    with pytest.raises(ValueError, match=r"residual has dtype torch\.float32"):
        cnnkernels.add_relu(a, b)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (torch.zeros(2, dtype=torch.int32), torch.zeros(2), "input has dtype torch.int32"),
        (torch.zeros(2, 3), torch.zeros(3), "residual has shape"),
        (torch.zeros(2, 3), torch.zeros(2, 4), r"it must be \[2, 3\]"),
        (torch.zeros(2), torch.zeros(2, device="meta"), "residual is on meta"),
    ],
)
def test_bad_input(a, b, message):
    with pytest.raises(ValueError, match=message):
        cnnkernels.add_relu(a, b)


def test_compiled_and_exported():
    class Net(torch.nn.Module):
        def forward(self, a, b):
            return cnnkernels.add_relu(a * 2, b)

    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = Net()(a, b)
    torch.testing.assert_close(torch.compile(Net(), fullgraph=True)(a, b), expected)
    exported = torch.export.export(Net(), (a, b)).module()
    assert torch.equal(exported(a, b), expected)


def opcheck_cases():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, 6, 6, dtype=dtype)
        for a in (x, x.to(memory_format=torch.channels_last)):
            operands = (a.clone().requires_grad_(), a.clone().requires_grad_())
            yield "add_relu", operands
            yield "_add_relu_with_mask", operands
            mask = torch.randint(0, 256, ((x.numel() + 7) // 8,), dtype=torch.uint8)
            yield "_relu_backward_mask", (operands[0], mask)
