"""The fused 1x1 pair against fp64 and against the two ops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import cnnkernels
from cnnkernels.ops._op import OPS
from cnnkernels.testing import compare, oracles

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def draw(n, c, k1, k2, size, dtype, layout=torch.channels_last, device="cpu"):
    def make(*shape):
        t = torch.randn(shape).to(device, dtype)
        return t.contiguous(memory_format=layout) if len(shape) == 4 else t

    x, residual = make(n, c, size, size), make(n, k1, size, size)
    weight, next_weight = make(k1, c, 1, 1) / c**0.5, make(k2, k1, 1, 1) / k1**0.5
    return x, weight, residual, next_weight, make(k1), make(k2)


def every_config_agrees(args, y, z):
    """The forms of the kernel differ in the order of a sum of three."""
    impl = OPS["conv2d_add_relu_conv2d_relu"].impls["triton"]
    for optional in (args, (*args[:4], None, None)):
        first = None
        for config in impl.configs(*args):
            out = impl.fn(*optional, config=config)
            first = first or ((y, z) if optional is args else out)
            for got, expected in zip(out, first):
                limit = 1e-6 if y.dtype == torch.float32 and y.device.type == "cpu" else 5e-3
                assert compare.relative_error(got, expected.double()) <= limit, config


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_against_fp64(layout, backend, device):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
            continue  # the interpreter's bfloat16 dot is wrong
        for n, c, k1, k2, size in [(2, 16, 64, 32, 5), (1, 64, 256, 64, 9), (1, 32, 64, 256, 3)]:
            args = draw(n, c, k1, k2, size, dtype, layout, device)
            x, weight, residual, next_weight, bias, next_bias = args
            with cnnkernels.use(backend):
                y, z = cnnkernels.conv2d_add_relu_conv2d_relu(*args)
            if backend == "triton" and layout == torch.channels_last:
                every_config_agrees(args, y, z)
            exact = oracles.relu(oracles.conv2d(x, weight, bias) + residual.double())
            plain = (F.conv2d(x, weight, bias) + residual).relu()
            exact_z = oracles.relu(oracles.conv2d(y, next_weight, next_bias))
            plain_z = F.conv2d(y, next_weight, next_bias).relu()
            for out, right, torch_out in ((y, exact, plain), (z, exact_z, plain_z)):
                if device == "cuda" and dtype == torch.float32:
                    assert compare.relative_error(out, right) <= 1e-3  # TF32
                else:
                    compare.assert_close(out, right, torch_out=torch_out)
                assert out.is_contiguous(memory_format=layout)


def test_which_implementation_runs(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    good, odd = draw(1, 16, 64, 32, 3, torch.float32), draw(1, 24, 64, 32, 3, torch.float32)

    def chosen(args):
        with cnnkernels.use("triton"):
            return cnnkernels.explain(cnnkernels.conv2d_add_relu_conv2d_relu, *args)[0]

    assert chosen(good).chosen == "triton"
    assert "C is 24; the fused pair takes powers of two" in chosen(odd).rejected["triton"]
    wide = draw(1, 256, 64, 32, 3, torch.float16)
    assert chosen(wide).chosen == "triton"  # when forced
    held_back = OPS["conv2d_add_relu_conv2d_relu"].impls["triton"].held_back
    assert "the two ops are faster" in held_back(*wide)
    assert "1 tiles for 132 multiprocessors" in held_back(*good)
    assert held_back(good[0].expand(1000, -1, -1, -1), *good[1:]) is None
    nchw = [t.contiguous() for t in good]
    assert "channels_last" in chosen(nchw).rejected["triton"]
    with cnnkernels.use("reference"):
        decisions = cnnkernels.explain(cnnkernels.conv2d_add_relu_conv2d_relu, *good)
    assert [d.op for d in decisions][1:] == ["conv2d_add_relu", "conv2d_relu"]


def test_gradients_flops_and_empty_batch():
    args = [t.requires_grad_() for t in draw(1, 2, 3, 2, 2, torch.float64)]
    fn = cnnkernels.conv2d_add_relu_conv2d_relu
    assert torch.autograd.gradcheck(fn, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, args, fast_mode=True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fn(*args)
    assert counter.get_total_flops() == 4 * (2 * 2 * 3 + 2 * 3 * 2 + 3)
    y, z = fn(*draw(0, 2, 3, 2, 2, torch.float32))
    assert y.shape == (0, 3, 2, 2) and z.shape == (0, 2, 2, 2)


@pytest.mark.parametrize(
    "index, value, message",
    [
        (1, torch.zeros(64, 16, 3, 3), r"weight has shape \[64, 16, 3, 3\]; it must be 1x1"),
        (2, torch.zeros(1, 64, 2, 2), "residual has shape"),
        (3, torch.zeros(32, 48, 1, 1), "next_weight has shape .*must take 64 channels"),
        (3, torch.zeros(32, 64, 3, 3), "next_weight has shape .*must be 1x1"),
        (4, torch.zeros(3), "bias has shape"),
        (5, torch.zeros(3), r"next_bias has shape \[3\]; it must be \[32\]"),
    ],
)
def test_bad_input(index, value, message):
    args = list(draw(1, 16, 64, 32, 3, torch.float32))
    args[index] = value
    with pytest.raises(ValueError, match=message):
        cnnkernels.conv2d_add_relu_conv2d_relu(*args)


def opcheck_cases():
    """For tests/test_registration.py."""
    for layout in LAYOUTS:
        args = draw(2, 4, 6, 3, 3, torch.float32, layout)
        yield "conv2d_add_relu_conv2d_relu", tuple(t.requires_grad_() for t in args)
