"""relu_lrn_max_pool2d: the fused chain against the unfused one, torch and fp64, and the memory it
keeps."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cnnkernels
from cnnkernels.testing import compare, oracles
from cnnkernels.testing.saved import saved_bytes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = ["cuda", "cpu", "triton", "reference"]
ALEXNET = (5, 5e-4, 0.75, 2.0)


def oracle(x, lrn, window, bias=None, relu=True):
    """(values, indices) in fp64. The normalised value is rounded to x's dtype before the pooling."""
    wide = torch.promote_types(x.dtype, torch.float32)
    v = x.double() if bias is None else (x.to(wide) + bias.to(wide).view(1, -1, 1, 1)).double()
    y = oracles.local_response_norm(oracles.relu(v) if relu else v, *lrn)
    return oracles.max_pool2d(y.to(x.dtype), *window)


def gradient_oracle(grad, x, index, lrn, bias=None, relu=True):
    wide = torch.promote_types(x.dtype, torch.float32)
    before = x.double() if bias is None else (x.to(wide) + bias.to(wide).view(1, -1, 1, 1)).double()
    pooled = oracles.max_pool2d_backward(grad, index, x.shape)
    v = oracles.relu(before) if relu else before
    dx = oracles.local_response_norm_backward(pooled, v, *lrn)
    return torch.where(before <= 0, 0, dx) if relu else dx


def own_index(x, lrn, window, bias=None, relu=True):
    """The positions the implementation chose: where two normalised values differ by one rounding,
    fp64 may order them the other way."""
    kernel, stride, padding, dilation, ceil_mode = window
    out, offsets = torch.ops.cnnkernels._lrn_pool_with_offsets(
        x, bias, *lrn, relu, kernel, stride, padding, dilation, ceil_mode
    )
    index = cnnkernels.ops._pool.flat_indices(offsets, x.shape, kernel, stride, padding, dilation)
    return out, index


WINDOWS = [
    ([3, 3], [2, 2], [0, 0], [1, 1], False),
    ([3, 3], [2, 2], [1, 1], [1, 1], True),
    ([2, 2], [2, 2], [0, 0], [1, 1], False),
    ([3, 2], [1, 3], [1, 0], [2, 1], False),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_forward_within_two_ulp(device, backend, dtype, channels_last):
    if (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
        pytest.skip("Triton's interpreter truncates when it converts to bfloat16")
    for shape in [(2, 7, 9, 11), (1, 96, 7, 7), (0, 8, 7, 7), (1, 33, 6, 5)]:
        for lrn in [ALEXNET, (4, 1e-4, 0.5, 1.0)]:
            for window in WINDOWS:
                x = torch.randn(shape, device=device).to(dtype)
                if channels_last:
                    x = x.to(memory_format=torch.channels_last)
                with cnnkernels.use(backend):
                    out = cnnkernels.relu_lrn_max_pool2d(x, *lrn, *window)
                assert out.dtype == dtype and out.is_contiguous(
                    memory_format=cnnkernels.ops._args.memory_format(x)
                )
                ulps = 64.0 if dtype == torch.float64 else 2.0
                compare.assert_close(out, oracle(x, lrn, window)[0], ulps=ulps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_positions_and_gradient(device, backend, dtype, channels_last, with_bias):
    for shape in [(2, 9, 9, 11), (1, 96, 7, 7), (0, 8, 7, 7)]:
        for lrn in [ALEXNET, (4, 0.02, 0.5, 1.0)]:
            for window in WINDOWS:
                x = torch.randn(shape, device=device).to(dtype)
                bias = torch.randn(shape[1], device=device).to(dtype) if with_bias else None
                if channels_last:
                    x = x.to(memory_format=torch.channels_last)
                x.requires_grad_()
                with cnnkernels.use(backend):
                    out, index = own_index(x, lrn, window, bias)
                    grad = torch.randn_like(out)
                    out.backward(grad)
                    # Values and positions are those of the implementation's own two passes.
                    y = cnnkernels.bias_relu_lrn(x, bias, *lrn) if with_bias else None
                    y = cnnkernels.relu_lrn(x, *lrn) if y is None else y
                    pooled = cnnkernels.max_pool2d(y, *window, return_indices=True)
                assert torch.equal(out, pooled[0]) and torch.equal(index, pooled[1])
                expected = gradient_oracle(grad, x.detach(), index, lrn, bias)
                error = compare.relative_error(x.grad, expected)
                allowed = torch.finfo(dtype).eps * (1 if dtype.itemsize == 2 else 8)
                assert error <= allowed, (shape, lrn, window, error)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    n=st.integers(0, 2), c=st.integers(1, 19), h=st.integers(1, 9), w=st.integers(1, 9),
    size=st.integers(1, 11), alpha=st.sampled_from([0.0, 1e-4, 0.05]),
    beta=st.sampled_from([0.75, 0.5, 1.0]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil_mode=st.booleans(), channels_last=st.booleans(), dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 9), relu=st.booleans(), special=st.booleans(),
    backend=st.sampled_from(["auto", "reference"]),
)  # fmt: skip
def test_any_geometry(
    n, c, h, w, size, alpha, beta, kernel, stride, padding, dilation, ceil_mode, channels_last,
    dtype, offset, relu, special, backend,
):  # fmt: skip
    for length, k, p, d in zip((h, w), kernel, padding, dilation):
        assume(p <= k // 2 and length + 2 * p >= (k - 1) * d + 1)
    flat = torch.randn(offset + n * c * h * w).to(dtype)[offset:]
    if special:
        flat[torch.rand(flat.shape) < 0.05] = torch.nan
    x = flat.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else flat.view(n, c, h, w)
    x.requires_grad_()
    lrn, window = (size, alpha, beta, 1.0), (kernel, stride, padding, dilation, ceil_mode)
    with cnnkernels.use(backend):
        out, index = own_index(x, lrn, window, relu=relu)
        grad = torch.randn(out.shape).to(dtype)
        out.backward(grad)
        if relu:
            with torch.no_grad():
                plain = cnnkernels.relu_lrn_max_pool2d(x, *lrn, *window)
            torch.testing.assert_close(plain, out, rtol=0, atol=0, equal_nan=True)
        y = cnnkernels.relu_lrn(x, *lrn) if relu else cnnkernels.local_response_norm(x, *lrn)
        pooled = cnnkernels.max_pool2d(y, *window, return_indices=True)
    torch.testing.assert_close((out, index), pooled, rtol=0, atol=0, equal_nan=True)
    expected = gradient_oracle(grad, x.detach(), index, lrn, relu=relu)
    assert torch.equal(x.grad.isnan(), expected.isnan())
    room = 8 * torch.finfo(dtype).eps * (expected.nan_to_num().abs().amax() if x.numel() else 0)
    assert bool(((x.grad - expected).nan_to_num().abs() <= room).all())


def test_is_torchs_chain():
    x = torch.randn(2, 16, 13, 13, requires_grad=True)
    expected = F.max_pool2d(F.local_response_norm(torch.relu(x), *ALEXNET), 3, 2)
    out = cnnkernels.relu_lrn_max_pool2d(x, *ALEXNET, 3, 2)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, x, grad), torch.autograd.grad(expected, x, grad)
    )


def test_alexnet_stage_keeps_sixteen_megabytes():
    """conv, ReLU, LRN, pool at batch 8 in fp32; PyTorch keeps 56.4 MB."""
    conv = torch.nn.Conv2d(3, 96, 11, 4)
    x = torch.randn(8, 3, 227, 227)

    def ours():
        return cnnkernels.relu_lrn_max_pool2d(conv(x), *ALEXNET, 3, 2)

    def torchs():
        y = torch.relu(conv(x))
        return F.max_pool2d(F.local_response_norm(y, *ALEXNET), 3, 2)

    torch.testing.assert_close(ours(), torchs())
    kept = saved_bytes(ours)
    assert kept <= 16e6 and kept < saved_bytes(torchs) / 3


def test_keeps_its_input_and_one_byte_per_output():
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    kept = saved_bytes(functools.partial(cnnkernels.relu_lrn_max_pool2d, x, *ALEXNET, 3, 2))
    assert kept == x.numel() * 4 + 2 * 8 * 4 * 4


def test_gradcheck():
    x = torch.randn(1, 3, 4, 4, dtype=torch.double, requires_grad=True)
    for f in (cnnkernels.relu_lrn_max_pool2d, torch.ops.cnnkernels.relu_lrn_max_pool2d):
        chain = functools.partial(
            f, size=3, alpha=0.5, beta=0.75, k=1.5, kernel_size=[3, 3], stride=[2, 2],
            padding=[1, 1],
        )  # fmt: skip
        assert torch.autograd.gradcheck(chain, x)
        assert torch.autograd.gradgradcheck(chain, x)


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(3, 4, 4), *ALEXNET, 2), r"input has shape \[3, 4, 4\]; it must have 4"),
        ((torch.zeros(1, 3, 4, 4), 0, 1e-4, 0.75, 1.0, 2), "size is 0"),
        ((torch.zeros(1, 3, 4, 4), 5, math.nan, 0.75, 1.0, 2), "alpha is nan"),
        ((torch.zeros(1, 3, 4, 4), *ALEXNET, 2, 2, 2), r"padding is \[2, 2\]; .*at most half"),
        ((torch.zeros(1, 3, 4, 4), *ALEXNET, 5), "output would be 0x0"),
    ],
)
def test_bad_input(args, message):
    with pytest.raises(ValueError, match=message):
        cnnkernels.relu_lrn_max_pool2d(*args)


def test_compiled_and_exported():
    class Net(torch.nn.Module):
        def forward(self, x):
            return cnnkernels.relu_lrn_max_pool2d(x * 2, *ALEXNET, 3, 2)

    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    expected = Net()(x)
    (grad,) = torch.autograd.grad(expected.sum(), x)
    compiled = torch.compile(Net(), fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), x)[0], grad)
    exported = torch.export.export(Net(), (x.detach(),)).module()
    torch.testing.assert_close(exported(x), expected)


def opcheck_cases():
    window = ([3, 3], [2, 2], [1, 1], [1, 1])
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 6, 5, 4, dtype=dtype)
        bias = torch.randn(6, dtype=dtype, requires_grad=True)
        for a in (x, x.to(memory_format=torch.channels_last)):
            a = a.clone().requires_grad_()
            yield "relu_lrn_max_pool2d", (a, *ALEXNET, 3, 2)
            yield "_lrn_pool_with_offsets", (a, None, *ALEXNET, False, *window, True)
            yield "_lrn_pool_with_offsets", (a, bias, *ALEXNET, True, *window, False)
            _, offsets = torch.ops.cnnkernels._lrn_pool_with_offsets(
                a, bias, *ALEXNET, True, *window, False
            )
            grad = torch.randn_like(offsets, dtype=dtype).requires_grad_()
            yield "_lrn_pool_backward", (grad, a, bias, offsets, *ALEXNET, True, *window)
