"""_relu_bias_backward: the ReLU's mask and the bias's gradient of a convolution in one pass."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import cnnkernels
from cnnkernels.ops import _conv2d_formulas, _op
from cnnkernels.testing import compare

OP = "_relu_bias_backward"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Vectors and single elements in both layouts; one image; several slices; more than 512 channels.
SHAPES = [(2, 3, 5, 7), (3, 16, 8, 8), (1, 8, 96, 97), (4, 1032, 3, 4), (32, 64, 28, 28)]


def draw(shape, dtype, channels_last, device):
    """(grad, output of a ReLU) with a NaN in the output."""
    tensors = []
    for t in (torch.randn(shape), torch.randn(shape).relu()):
        t = t.to(device, dtype)
        tensors.append(t.contiguous(memory_format=torch.channels_last) if channels_last else t)
    tensors[1][0, 0, 0, 1] = torch.nan
    return tensors


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "reference"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_fp64(dtype, channels_last, backend, device):
    reason = None
    for shape in SHAPES:
        grad, output = draw(shape, dtype, channels_last, device)
        with cnnkernels.use(backend):
            (decision,) = cnnkernels.explain(OP, grad, output)
            if decision.chosen != backend:
                reason = decision.rejected[backend]
                continue
            dx, dbias = _op.OPS[OP].overload(grad, output)
            again = _op.OPS[OP].overload(grad, output)
        assert torch.equal(dx, torch.where(output <= 0, 0, grad)) and dx.stride() == output.stride()
        exact = dx.double().sum((0, 2, 3))
        compare.assert_close(dbias, exact, torch_out=dx.sum((0, 2, 3)))
        assert torch.equal(again[0], dx) and torch.equal(again[1], dbias)  # a fixed order of sums
        for start in (1, 2, 5):  # any start: no 16-byte accesses
            moved = torch.empty(start + output.numel(), dtype=dtype, device=device)[start:]
            moved = moved.as_strided(output.shape, output.stride(), start).copy_(output)
            with cnnkernels.use(backend):
                dx2, dbias2 = _op.OPS[OP].overload(grad, moved)
            assert torch.equal(dx2, dx)
            compare.assert_close(dbias2, exact, torch_out=dx.sum((0, 2, 3)))
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_gradcheck(channels_last):
    grad, output = draw((2, 3, 3, 2), torch.float64, channels_last, "cpu")
    output = output.nan_to_num(1.0)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda g: _op.OPS[OP].overload(g, output), grad.requires_grad_())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["conv2d_relu", "conv2d_add_relu", "conv2d_relu_max_pool2d"])
def test_convolutions_give_the_same_gradients_with_it(name, device, monkeypatch):
    """As they will once the kernel is a default: forced here on every device."""
    x, weight, bias = torch.randn(2, 8, 9, 9), torch.randn(16, 8, 3, 3) / 8, torch.randn(16)
    leaves = [t.to(device).requires_grad_() for t in (x, weight, bias)]
    residual = [torch.randn(2, 16, 7, 7, device=device)] if "add" in name else []

    def gradients():
        out = getattr(cnnkernels, name)(*leaves[:2], *residual, leaves[2])
        return torch.autograd.grad(out.square().sum(), leaves)

    plain = gradients()
    impls = _op.OPS[OP].impls
    default = dataclasses.replace(impls["cuda"], default=True)
    monkeypatch.setitem(impls, "cuda", default)
    if device == "cpu":
        patched_on_the_cpu(monkeypatch)
    with cnnkernels.use("auto"):
        fused = gradients()
    for a, b in zip(fused, plain):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def patched_on_the_cpu(monkeypatch) -> None:
    """The convolutions' backward takes the op on the CPU too (by its reference)."""
    monkeypatch.setattr(
        _conv2d_formulas, "masked",
        lambda grad, out, bias: _op.OPS[OP].overload(grad, out) if bias else (grad, None),
    )  # fmt: skip


def opcheck_cases():
    """For tests/test_registration.py."""
    for dtype, channels_last in itertools.product((torch.float32, torch.float64), (False, True)):
        grad, output = draw((2, 3, 4, 5), dtype, channels_last, "cpu")
        yield OP, (grad.requires_grad_(), output)
