"""max_pool2d and relu_max_pool2d: bit-equal to torch and to the definition, index and gradient
too."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cnnkernels
from cnnkernels.testing import oracles
from cnnkernels.testing.saved import saved_bytes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = ["cuda", "cpu", "triton", "reference"]
# kernel, stride, padding, dilation, ceil_mode: the specialised windows, then odd ones.
GEOMETRIES = [
    (3, 2, 0, 1, False),
    (3, 2, 1, 1, False),
    (3, 2, 0, 1, True),
    (2, 2, 0, 1, False),
    (2, 2, 0, 1, True),
    (3, 1, 1, 1, False),
    (5, 3, 2, 1, True),
    ((3, 2), (1, 3), (1, 0), (2, 1), False),
    (16, 16, 0, 1, True),  # 256 taps: positions no longer fit in a byte
]


def skip_inexact(device, backend, dtype):
    if (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
        pytest.skip("Triton's interpreter truncates when it converts to bfloat16")


def hard_values(shape, dtype, device="cpu"):
    """Few distinct values (ties), zeros of both signs, several NaN and infinities."""
    x = torch.randint(-3, 4, shape).float()
    x[torch.rand(shape) < 0.05] = -0.0
    x[torch.rand(shape) < 0.08] = torch.nan
    x[torch.rand(shape) < 0.05] = torch.inf
    x[torch.rand(shape) < 0.3] = -torch.inf
    if shape[0] > 0:
        x[0, 0] = -torch.inf
    return x.to(device, dtype)


def same_bits(a, b):
    return torch.equal(torch.nan_to_num(a, nan=123.0), torch.nan_to_num(b, nan=123.0))


def torch_on_cpu(x, *geometry):
    """torch's values and indices from its CPU kernel, on x's device: its CUDA kernel for
    channels_last gives index -1 to a window of -inf alone."""
    out, index = F.max_pool2d(x.cpu(), *geometry, return_indices=True)
    return out.to(x.device), index.to(x.device)


def view_at(offset, shape, dtype, channels_last, device="cpu", fill=torch.randn):
    """A dense tensor that starts ``offset`` elements into its storage, in either memory format."""
    n, c, h, w = shape
    flat = fill((offset + n * c * h * w,)).to(device, dtype)[offset:]
    return flat.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else flat.view(n, c, h, w)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_bit_equal_to_torch(device, backend, dtype, channels_last):
    skip_inexact(device, backend, dtype)
    compiled = (device, backend) == ("cuda", "triton")  # one compilation per geometry and dtype
    geometries = GEOMETRIES[:4] if compiled else GEOMETRIES
    for shape in [(2, 3, 17, 19), (0, 3, 17, 16), (1, 17, 18, 16)]:
        x = hard_values(shape, dtype, device)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        for geometry in geometries:
            expected, index = torch_on_cpu(x, *geometry)
            with cnnkernels.use(backend):
                out = cnnkernels.max_pool2d(x, *geometry)
                relu = cnnkernels.relu_max_pool2d(x, *geometry)
                indexed = cnnkernels.max_pool2d(x, *geometry, return_indices=True)
            assert same_bits(out, expected), geometry
            assert out.is_contiguous(memory_format=cnnkernels.ops._args.memory_format(x))
            assert same_bits(relu, torch.relu(expected)), geometry
            assert same_bits(indexed[0], expected)
            assert torch.equal(indexed[1], index), geometry


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
def test_gradient_is_the_definitions(device, backend, dtype, channels_last, relu):
    # Integer gradients: every order of summation gives the same bits.
    for shape in [(2, 3, 17, 19), (0, 3, 17, 16), (1, 16, 18, 16)]:
        values = hard_values(shape, dtype, device)
        if channels_last:
            values = values.to(memory_format=torch.channels_last)
        for geometry in GEOMETRIES:
            x = values.clone().requires_grad_()
            pool = cnnkernels.relu_max_pool2d if relu else cnnkernels.max_pool2d
            with cnnkernels.use(backend):
                out = pool(x, *geometry)
                grad = torch.randint(-4, 5, out.shape, device=device).to(dtype)
                out.backward(grad)
            pooled, index = torch_on_cpu(values, *geometry)
            if relu:
                index = torch.where(pooled <= 0, -1, index)
            expected = oracles.max_pool2d_backward(grad, index, shape)
            assert torch.equal(x.grad.double(), expected), geometry


@settings(deadline=None, max_examples=120, derandomize=True)
@given(
    n=st.integers(0, 2), c=st.integers(1, 19), h=st.integers(1, 12), w=st.integers(1, 12),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ceil_mode=st.booleans(), channels_last=st.booleans(), dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 9), relu=st.booleans(), hard=st.booleans(),
    backend=st.sampled_from(["auto", "reference"]),
)  # fmt: skip
def test_any_geometry(
    n, c, h, w, kernel, stride, padding, dilation, ceil_mode, channels_last, dtype, offset, relu,
    hard, backend,
):  # fmt: skip
    for size, k, p, d in zip((h, w), kernel, padding, dilation):
        assume(p <= k // 2 and size + 2 * p >= (k - 1) * d + 1)
    fill = (lambda s: hard_values((*s, 1), torch.float32).view(s)) if hard else torch.randn
    x = view_at(offset, (n, c, h, w), dtype, channels_last, fill=fill).requires_grad_()
    pool = cnnkernels.relu_max_pool2d if relu else cnnkernels.max_pool2d
    geometry = (kernel, stride, padding, dilation, ceil_mode)
    with cnnkernels.use(backend):
        out = pool(x, *geometry)
        grad = torch.randint(-4, 5, out.shape).to(dtype)
        out.backward(grad)
        with torch.no_grad():
            assert same_bits(pool(x, *geometry), out)
    expected, index = oracles.max_pool2d(x.detach(), *geometry)
    if not relu:
        with cnnkernels.use(backend):
            assert torch.equal(cnnkernels.max_pool2d(x, *geometry, return_indices=True)[1], index)
    else:
        index = torch.where(expected <= 0, -1, index)
        expected = oracles.relu(expected)
    assert same_bits(out.double(), expected)
    expected_grad = oracles.max_pool2d_backward(grad, index, x.shape)
    assert torch.equal(x.grad.double(), expected_grad)


def test_argument_forms_are_torchs():
    x = torch.randn(2, 3, 9, 8)
    for args, kwargs in [
        ((2,), {}), ((3, 2), {}), (([3, 2], (2, 1), 1), {}), ((3,), {"ceil_mode": True}),
        ((3, None, 1, 2), {}), ((2,), {"return_indices": True, "stride": 1}),
    ]:  # fmt: skip
        for input in (x, x[0]):
            ours = cnnkernels.max_pool2d(input, *args, **kwargs)
            theirs = F.max_pool2d(input, *args, **kwargs)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    strided = torch.randn(2, 8, 9, 3).transpose(1, 3)[:, :, ::2]  # neither layout
    assert torch.equal(cnnkernels.max_pool2d(strided, 2), F.max_pool2d(strided, 2))
    _, index = torch.ops.cnnkernels.max_pool2d_with_indices(x, 2)
    assert torch.equal(index, F.max_pool2d(x, 2, return_indices=True)[1])


def test_window_without_taps():
    # Effective window 3, taps at -1 and 1 of an input of width 1. torch's index lies outside here.
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    for backend in ("auto", "reference"):
        with cnnkernels.use(backend):
            out, index = cnnkernels.max_pool2d(x, 2, 1, 1, 2, return_indices=True)
            assert out.item() == -math.inf and index.item() == -1
            assert torch.autograd.grad(out, x)[0].item() == 0


def test_keeps_one_byte_per_output_for_backward():
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    for pool, kernel, size in [
        (cnnkernels.max_pool2d, 2, 1), (cnnkernels.relu_max_pool2d, 3, 1),
        (cnnkernels.max_pool2d, 16, 4),
    ]:  # fmt: skip
        outputs = F.max_pool2d(x, kernel).numel()
        assert saved_bytes(functools.partial(pool, x, kernel)) == outputs * size


@pytest.mark.parametrize("function", ["max_pool2d", "relu_max_pool2d"])
def test_gradcheck(function):
    x = torch.randn(1, 2, 4, 5, dtype=torch.double, requires_grad=True)
    for f in (getattr(cnnkernels, function), getattr(torch.ops.cnnkernels, function)):
        pool = functools.partial(f, kernel_size=3, stride=2, padding=1)
        assert torch.autograd.gradcheck(pool, x)
        assert torch.autograd.gradgradcheck(pool, x)


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(2, 2), 2), r"input has shape \[2, 2\]; it must have 3 or 4"),
        ((torch.zeros(1, 1, 4, 4, dtype=torch.int64), 2), "input has dtype torch.int64"),
        ((torch.zeros(1, 1, 4, 4), 0), "kernel_size is 0; it must be at least 1"),
        ((torch.zeros(1, 1, 4, 4), 2.5), "kernel_size is 2.5; it must be an int or a pair"),
        ((torch.zeros(1, 1, 4, 4), (1, 2, 3)), "kernel_size is .*pair of ints"),
        ((torch.zeros(1, 1, 4, 4), 2, 0), "stride is 0; it must be at least 1"),
        ((torch.zeros(1, 1, 4, 4), 2, -1), "stride is -1"),
        ((torch.zeros(1, 1, 4, 4), 2, 2, -1), "padding is -1; it must be at least 0"),
        ((torch.zeros(1, 1, 4, 4), 3, 2, 2), r"padding is \[2, 2\]; it must be at most half"),
        ((torch.zeros(1, 1, 4, 4), 2, 2, 0, 0), "dilation is 0; it must be at least 1"),
        ((torch.zeros(1, 1, 4, 4), 5), r"output would be 0x0: kernel_size \[5, 5\]"),
        ((torch.zeros(1, 0, 4, 4), 2), r"input has shape \[1, 0, 4, 4\]; .*can't be 0"),
        ((torch.zeros(1, 1, 0, 4), 2), "can't be 0"),
    ],
)
def test_bad_input(args, message):
    for pool in (cnnkernels.max_pool2d, cnnkernels.relu_max_pool2d):
        with pytest.raises(ValueError, match=message):
            pool(*args)


def test_bad_input_to_the_op_is_an_error():
    """What the public function refuses, the op itself refuses too, on every implementation."""
    x = torch.zeros(1, 1, 4, 4)
    for backend in ("auto", "reference"):
        for args in [(x, 5), (x, 0), (x, 2, -1), (x, 2, 2, -1), (x, 2, 2, 0, 0)]:
            with cnnkernels.use(backend), pytest.raises((ValueError, RuntimeError)):
                torch.ops.cnnkernels.max_pool2d(*args)


def test_compiled_and_exported():
    class Net(torch.nn.Module):
        def forward(self, x):
            y = cnnkernels.max_pool2d(x * 2, 3, 2, ceil_mode=True)
            return cnnkernels.relu_max_pool2d(y, 2)

    x = torch.randn(2, 3, 13, 13, requires_grad=True)
    expected = Net()(x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    compiled = torch.compile(Net(), fullgraph=True)(x)
    assert torch.equal(compiled, expected)
    assert torch.equal(torch.autograd.grad(compiled.sum(), x)[0], expected_grad)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Net(), (x.detach(),), dynamic_shapes={"x": {0: batch}}).module()
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 13, 13)
        assert torch.equal(exported(x), Net()(x))


def opcheck_cases():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 3, 6, 6, dtype=dtype)
        for a in (x, x.to(memory_format=torch.channels_last)):
            a = a.clone().requires_grad_()
            window = ([3, 3], [2, 2], [1, 1], [1, 1])
            yield "max_pool2d", (a, 3, 2)
            yield "relu_max_pool2d", (a, [3, 2], [2, 2], [1, 1], [1, 1], True)
            yield "_max_pool2d_with_offsets", (a, *window, False, True)
            _, offsets = torch.ops.cnnkernels._max_pool2d_with_offsets(a, *window, False, False)
            grad = torch.randn_like(offsets, dtype=dtype).requires_grad_()
            yield "_max_pool2d_backward", (grad, offsets, list(a.shape), *window)
