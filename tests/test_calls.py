"""Calling an op: what is remembered of a call, and when torch's dispatcher is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cnnkernels
from cnnkernels.ops._op import OPS

CONV = OPS["conv2d_relu"]


@pytest.fixture
def dispatched(monkeypatch):
    """Of each call of conv2d_relu's kernel, whether it came through torch's dispatcher."""
    calls = []
    overload = CONV.overload

    def through_torch(*args):
        calls.append(True)
        return overload(*args)

    monkeypatch.setattr(CONV, "overload", through_torch)
    return calls


def operands(requires_grad: bool = False):
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
    return x, weight.requires_grad_(requires_grad)


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_plain_call_leaves_the_dispatcher_out(dispatched):
    x, weight = operands()
    expected = torch.relu(torch.conv2d(x, weight))
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            out = cnnkernels.conv2d_relu(x, weight)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
            assert not out.requires_grad
            cnnkernels.conv2d_relu(torch.randn(2, 3, 9, 9), torch.nn.Parameter(weight))
    assert not dispatched


def test_a_gradient_needs_no_dispatcher(dispatched):
    x, weight = operands(requires_grad=True)
    out = cnnkernels.conv2d_relu(x, weight, None, (1, 1), 1)
    assert not dispatched
    (ours,) = torch.autograd.grad(out.square().sum(), weight)
    (same,) = torch.autograd.grad(
        CONV.overload(x, weight, None, [1, 1], [1, 1]).square().sum(), weight
    )
    assert dispatched and torch.equal(ours, same)
    plain = torch.relu(torch.conv2d(x, weight, None, 1, 1))
    (right,) = torch.autograd.grad(plain.square().sum(), weight)
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-3)


def test_the_dispatcher_is_asked_where_it_has_something_to_do(dispatched):
    x, weight = operands()
    call = cnnkernels.conv2d_relu
    expected = call(x, weight)

    def seen() -> bool:
        found = bool(dispatched)
        dispatched.clear()
        return found

    assert not seen()
    with Names() as mode:
        call(x, weight)
    assert seen() and mode.names == ["cnnkernels.conv2d_relu.default"]
    with torch.autocast("cpu", torch.bfloat16):
        assert call(x, weight).dtype == torch.bfloat16 and seen()
    with torch.device("cpu"):  # a function mode
        assert call(x, weight).shape == expected.shape and seen()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(x, weight)
    assert seen() and "cnnkernels::conv2d_relu" in {e.key for e in profile.key_averages()}
    assert call(x.to("meta"), weight.to("meta")).is_meta and seen()
    torch.testing.assert_close(call(torch._neg_view(-x), weight), expected)
    assert seen()
    batched = torch.vmap(lambda one: call(one, weight))(torch.stack([x, x]))
    torch.testing.assert_close(batched, torch.stack([expected, expected]))
    assert seen()

    class Wrapped(torch.Tensor):
        pass

    assert isinstance(call(x.as_subclass(Wrapped), weight), Wrapped) and seen()
    call(x, weight)
    assert not seen()


def test_equal_arguments_of_other_types_are_still_refused():
    x, weight = operands()
    for stride in (1, (1, 1), [1, 1]):
        assert cnnkernels.conv2d_relu(x, weight, None, stride).shape == (2, 4, 7, 7)
    for wrong in (True, 1.0, (1.0, 1.0), (1, True), np.array([1, 1]), [1, 1, 1], [[1], 1]):
        with pytest.raises(ValueError, match=r"stride is .*must be an int or a pair"):
            cnnkernels.conv2d_relu(x, weight, None, wrong)
    for wrong in (True, 1.0):
        with pytest.raises(ValueError, match=r"groups is .*must be an int"):
            cnnkernels.conv2d_relu(x, weight, groups=wrong)
    with pytest.raises(TypeError, match="weight must be a Tensor, got ndarray"):
        cnnkernels.conv2d_relu(x, weight.numpy())
    for _ in range(2):  # a refusal is not remembered as anything else
        with pytest.raises(ValueError, match="bias has shape"):
            cnnkernels.conv2d_relu(x, weight, torch.zeros(3))


def test_what_is_remembered_holds_no_tensor():
    CONV._memo.clear()
    x, weight = operands()
    for channels_last in (False, True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for _ in range(3):
            cnnkernels.conv2d_relu(x.contiguous(memory_format=layout), weight, None, 1, 1)
    assert len(CONV._memo) == 2
    for key, (_fn, rest) in CONV._memo.items():
        assert not [v for v in (*key, *rest) if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("name", ["conv2d_projection_add_relu", "conv2d_add_relu_conv2d_relu"])
def test_gradient_with_trailing_tensors_left_out(name):
    """torch's dispatcher drops arguments that have their default, and counts gradients without."""
    x, weight, z = torch.randn(1, 8, 5, 5), torch.randn(8, 8, 1, 1), torch.randn(1, 8, 5, 5)
    args = (x, weight.requires_grad_(), z, torch.randn(8, 8, 1, 1))
    first, second = (
        torch.autograd.grad([t.sum() for t in (out if isinstance(out, tuple) else (out,))], weight)
        for out in (getattr(torch.ops.cnnkernels, name)(*args), getattr(cnnkernels, name)(*args))
    )
    torch.testing.assert_close(first, second)
