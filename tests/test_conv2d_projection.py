"""The convolution with a projection shortcut against fp64 and against the two ops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import cnnkernels
from cnnkernels.testing import compare, oracles

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# n, channels, output channels, kernel, stride, padding, dilation, output size, shortcut channels, stride
CASES = [
    (2, 16, 64, 1, 1, 0, 1, 7, 32, 2),  # the end of a bottleneck
    (2, 24, 40, 3, 1, 1, 1, 9, 16, 2),  # of a basic block
    (1, 64, 256, 1, 1, 0, 1, 14, 64, 1),
    (3, 16, 72, 3, 2, 1, 2, 5, 8, 3),
]


def draw(case, dtype=torch.float32, layout=torch.channels_last, device="cpu", odd=0):
    """Arguments; ``odd`` rows and columns of the shortcut lie beyond the last one read."""
    n, c, k, kernel, stride, padding, dilation, size, c2, stride2 = case

    def make(*shape):
        t = torch.randn(shape).to(device, dtype)
        return t.contiguous(memory_format=layout) if len(shape) == 4 else t

    side = (size - 1) * stride + dilation * (kernel - 1) + 1 - 2 * padding
    other = (size - 1) * stride2 + 1 + odd
    weights = make(k, c, kernel, kernel) / (c**0.5 * kernel), make(k, c2, 1, 1) / c2**0.5
    tensors = make(n, c, side, side), weights[0], make(n, c2, other, other), weights[1], make(k)
    return (*tensors, stride, padding, dilation, stride2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_against_fp64(layout, backend, device):
    if backend == "cuda" and (device == "cpu" or layout == torch.contiguous_format):
        return  # it takes channels_last on a GPU
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for i, case in enumerate(CASES):
            args = draw(case, dtype, layout, device, odd=i % 2)
            x, weight, z, projection, bias, stride, padding, dilation, stride2 = args
            with cnnkernels.use(backend, strict=device == "cuda"):
                out = cnnkernels.conv2d_projection_add_relu(*args)
            pairs = [(a, a) for a in (stride, padding, dilation, stride2)]
            shortcut = oracles.conv2d(z, projection, None, pairs[3])
            exact = oracles.relu(oracles.conv2d(x, weight, bias, *pairs[:3]) + shortcut)
            assert out.is_contiguous(memory_format=layout)
            if device == "cuda" and dtype == torch.float32:
                assert compare.relative_error(out, exact) <= 1e-3  # TF32
                continue
            main = F.conv2d(x, weight, bias, stride, padding, dilation)
            plain = (main + F.conv2d(z, projection, None, stride2)).relu()
            compare.assert_close(out, exact, torch_out=plain)


def test_which_implementation_runs():
    args = draw(CASES[0])
    decisions = cnnkernels.explain(cnnkernels.conv2d_projection_add_relu, *args)
    assert [d.op for d in decisions] == [
        "conv2d_projection_add_relu", "conv2d", "conv2d_add_relu",
    ]  # fmt: skip
    assert "not verified" in decisions[0].rejected["cuda"]
    with cnnkernels.use("cuda"):
        decision = cnnkernels.explain(cnnkernels.conv2d_projection_add_relu, *args)[0]
    assert decision.rejected["cuda"]


def test_gradients_flops_and_empty_batch():
    case = (2, 2, 3, 3, 1, 1, 1, 3, 2, 2)
    tensors = draw(case, torch.float64, odd=1)
    args = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in tensors]
    fn = cnnkernels.conv2d_projection_add_relu
    assert torch.autograd.gradcheck(fn, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, args, fast_mode=True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fn(*args)
    assert counter.get_total_flops() == 2 * 9 * 3 * (2 * 2 * 9 + 2 * 2 + 1)
    assert fn(*draw((0, *case[1:]))).shape == (0, 3, 3, 3)


@pytest.mark.parametrize(
    "index, value, error, message",
    [
        (2, torch.zeros(2, 32, 9, 13), ValueError, r"shortcut_input has shape .*\[2, 64, 5, 7\]"),
        (2, torch.zeros(32, 13, 13), ValueError, "shortcut_input has shape .*4 dimensions"),
        (2, [1.0], TypeError, "shortcut_input must be a Tensor, got list"),
        (3, torch.zeros(64, 32, 3, 3), ValueError, r"shortcut_weight .*must be \[64, 32, 1, 1\]"),
        (3, torch.zeros(64, 16, 1, 1), ValueError, "shortcut_weight has shape"),
        (3, torch.zeros(64, 32, 1, 1).half(), ValueError, "shortcut_weight has dtype"),
        (4, torch.zeros(3), ValueError, "bias has shape"),
        (5, 0, ValueError, "stride is 0"),
        (8, 3, ValueError, r"with shortcut_stride=\[3, 3\] its projection is"),
        (8, "2", ValueError, "shortcut_stride is '2'"),
    ],
)
def test_bad_input(index, value, error, message):
    args = list(draw(CASES[0]))
    args[index] = value
    with pytest.raises(error, match=message):
        cnnkernels.conv2d_projection_add_relu(*args)


def opcheck_cases():
    """For tests/test_registration.py."""
    for layout in LAYOUTS:
        args = draw((2, 4, 6, 3, 1, 1, 1, 3, 2, 2), layout=layout)
        args = tuple(t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args)
        pairs = ([a, a] for a in args[5:])
        yield "conv2d_projection_add_relu", (*args[:5], *pairs)
