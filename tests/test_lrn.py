"""local_response_norm, relu_lrn and bias_relu_lrn: within 2 ulp of the definition in fp64."""

from __future__ import annotations

import functools
import math

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
ALEXNET = (5, 5e-4, 0.75, 2.0)  # torchvision's form of the 2012 paper's constants


def check_ulps(out, expected, args, backend):
    """2 ulp. The reference sums the window in fp32, with an error of about size/2 roundings in the
    sum, which the power magnifies beta times; it counts only where alpha is large enough for the sum
    to outweigh k, which no published network does."""
    size, alpha, beta = (*args, *(1e-4, 0.75, 1.0)[len(args) - 1 :])[:3]
    allowed = 2.0
    if out.dtype == torch.float64:
        allowed = 32.0 + 8 * size  # the oracle rounds at every step, too
    elif out.dtype == torch.float32 and alpha > 1e-3 and backend == "reference":
        allowed += beta * (size + 2)
    compare.assert_close(out, expected, ulps=allowed)


def decided(backend, x, args):
    """The implementation that runs when ``backend`` is preferred."""
    with cnnkernels.use(backend):
        return cnnkernels.explain(cnnkernels.local_response_norm, x, *args)[0].chosen


def view_at(offset, shape, dtype, channels_last, device="cpu"):
    """A dense tensor that starts ``offset`` elements into its storage, in either memory format."""
    n, c, h, w = shape
    flat = (torch.randn(offset + n * c * h * w) * 4).to(device, dtype)[offset:]
    return flat.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else flat.view(n, c, h, w)


def normalised_value(x, bias, relu):
    """(value before the ReLU, after it): input + bias is one fp32 addition (fp64 for fp64)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    v = x.double() if bias is None else (x.to(wide) + bias.to(wide).view(1, -1, 1, 1)).double()
    return v, oracles.relu(v) if relu else v


def forward_oracle(x, bias, args, relu):
    return oracles.local_response_norm(normalised_value(x, bias, relu)[1], *args)


def backward_oracle(grad, x, bias, args, relu):
    before, v = normalised_value(x, bias, relu)
    dx = oracles.local_response_norm_backward(grad, v, *args)
    return torch.where(before <= 0, 0, dx) if relu else dx


def call(kind, x, bias, args):
    if kind == "bias_relu_lrn":
        return cnnkernels.bias_relu_lrn(x, bias, *args)
    return getattr(cnnkernels, kind)(x, *args)


KINDS = ["local_response_norm", "relu_lrn", "bias_relu_lrn"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_within_two_ulp(device, backend, dtype, channels_last, kind):
    if (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
        pytest.skip("Triton's interpreter truncates when it converts to bfloat16")
    relu = kind != "local_response_norm"
    for shape in [(2, 7, 5, 3), (1, 96, 7, 5), (0, 8, 4, 4), (1, 1, 3, 1), (1, 32, 8, 8)]:
        for args in [(1,), (2,), ALEXNET, (4, 1.0, 0.5, 1.0), (11, 2.0, 1.3, 0.1)]:
            x = view_at(0, shape, dtype, channels_last, device)
            bias = torch.randn(shape[1], device=device).to(dtype)
            with cnnkernels.use(backend):
                out = call(kind, x, bias, args)
            assert out.dtype == dtype and out.is_contiguous(
                memory_format=cnnkernels.ops._args.memory_format(x)
            )
            expected = forward_oracle(x, bias if "bias" in kind else None, args, relu)
            check_ulps(out, expected, args, decided(backend, x, args))


@settings(deadline=None, max_examples=120, derandomize=True)
@given(
    n=st.integers(0, 2), c=st.integers(1, 37), h=st.integers(1, 5), w=st.integers(1, 9),
    size=st.integers(1, 11), alpha=st.floats(0, 3), beta=st.sampled_from([0.75, 0.5, 1.0, 0.31]),
    k=st.floats(0.5, 3), channels_last=st.booleans(), dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 9), kind=st.sampled_from(KINDS), grad_last=st.booleans(),
    backend=st.sampled_from(["auto", "reference"]),
)  # fmt: skip
def test_any_geometry(
    n, c, h, w, size, alpha, beta, k, channels_last, dtype, offset, kind, grad_last, backend
):
    x = view_at(offset, (n, c, h, w), dtype, channels_last).requires_grad_()
    bias = torch.randn(c).to(dtype).requires_grad_()
    grad = view_at(offset // 2, (n, c, h, w), dtype, grad_last)
    args, relu = (size, alpha, beta, k), kind != "local_response_norm"
    with cnnkernels.use(backend):
        out = call(kind, x, bias, args)
        out.backward(grad)
    b = bias.detach() if "bias" in kind else None
    expected = forward_oracle(x.detach(), b, args, relu)
    check_ulps(out.detach(), expected, args, decided(backend, x.detach(), args))
    # The two terms of the gradient may cancel: its error is measured against their size.
    expected = backward_oracle(grad, x.detach(), b, args, relu)
    scale = backward_oracle(grad.abs(), x.detach().abs(), None, (size, -alpha * 0, beta, k), False)
    room = 4 * torch.finfo(dtype).eps * (scale.abs() + expected.abs().amax(1, keepdim=True))
    if x.numel():
        assert bool(((x.grad.double() - expected).abs() <= room + 1e-30).all())
    if b is not None:
        total = expected.sum((0, 2, 3))
        room = 4 * torch.finfo(dtype).eps * (expected.abs().sum((0, 2, 3)) + total.abs() + 1)
        assert bool(((bias.grad.double() - total).abs() <= room).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["cuda", "cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_against_fp64(device, backend, dtype, channels_last, kind):
    relu = kind != "local_response_norm"
    for shape in [(2, 9, 5, 3), (1, 96, 6, 8), (0, 8, 4, 4)]:
        # Mild alphas: the two terms do not cancel, so the relative error means something.
        for args in [(1, 0.01), (2, 0.02), ALEXNET, (5, 0.05), (9, 0.1, 1.3, 1.5)]:
            x = view_at(0, shape, dtype, channels_last, device).requires_grad_()
            bias = torch.randn(shape[1], device=device).to(dtype)
            grad = view_at(0, shape, dtype, channels_last, device)
            with cnnkernels.use(backend):
                call(kind, x, bias, args).backward(grad)
            b = bias if "bias" in kind else None
            expected = backward_oracle(grad, x.detach(), b, args, relu)
            error = compare.relative_error(x.grad, expected)
            # The rounding of the result, and for fp32 that of the arithmetic: 2 ulp.
            allowed = torch.finfo(dtype).eps * {2: 1, 4: 2, 8: 4}[dtype.itemsize]
            assert error <= allowed, (shape, args, error)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_special_values(channels_last, backend):
    x = torch.zeros(1, 40, 3, 3)
    x[0, 5, 0, 0], x[0, 20, 1, 1], x[0, 30, 2, 2] = torch.nan, torch.inf, 1e18
    x[0, 33, 0, 1] = -torch.inf
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for args in [(5,), (4, 1e-4, 0.5, 0.0), (3, 0.0)]:
        with cnnkernels.use(backend):
            torch.testing.assert_close(
                cnnkernels.local_response_norm(x, *args), F.local_response_norm(x, *args),
                equal_nan=True,
            )  # fmt: skip
            torch.testing.assert_close(
                cnnkernels.relu_lrn(x, *args), F.local_response_norm(x.relu(), *args),
                equal_nan=True,
            )  # fmt: skip


def test_every_rank_of_torchs():
    for shape in [(2, 7, 5), (2, 7, 5, 3), (2, 7, 3, 4, 2), (1, 3, 2, 2, 2, 2), (2, 7, 0)]:
        x = torch.randn(shape)
        torch.testing.assert_close(
            cnnkernels.local_response_norm(x, 3, 0.5), F.local_response_norm(x, 3, 0.5)
        )
        torch.testing.assert_close(
            cnnkernels.relu_lrn(x, size=4, k=2.0), F.local_response_norm(x.relu(), 4, k=2.0)
        )
    x = torch.randn(2, 7, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    out = cnnkernels.local_response_norm(x, 3, 0.5)
    assert out.stride() == x.stride()
    torch.testing.assert_close(out, F.local_response_norm(x, 3, 0.5))
    strided = torch.randn(2, 8, 9, 3).transpose(1, 3)[:, :, ::2]  # neither layout
    torch.testing.assert_close(
        cnnkernels.local_response_norm(strided, 3), F.local_response_norm(strided, 3)
    )


def test_keeps_only_its_input_for_backward():
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    for kind in KINDS:
        kept = saved_bytes(functools.partial(call, kind, x, torch.zeros(8), (5,)))
        assert kept <= (x.numel() + 8) * 4


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    x = torch.randn(1, 4, 2, 2, dtype=torch.double, requires_grad=True)
    bias = torch.randn(4, dtype=torch.double, requires_grad=True)
    for size in (2, 3):
        f = functools.partial(call, kind, args=(size, 0.7, 0.75, 1.5))
        inputs = (x, bias) if "bias" in kind else (x, None)
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_autocast_promotes_the_bias():
    x, bias = torch.randn(1, 4, 2, 2, dtype=torch.bfloat16), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert cnnkernels.bias_relu_lrn(x, bias, 3).dtype == torch.float32
        assert cnnkernels.relu_lrn(x, 3).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "args, message",
    [
        ((torch.zeros(2, 2), 3), r"input has shape \[2, 2\]; it must have 3 or"),
        ((torch.zeros(2, 2, 2, 2, dtype=torch.int32), 3), "input has dtype torch.int32"),
        ((torch.zeros(2, 2, 2, 2), 0), "size is 0; it must be an int of at least 1"),
        ((torch.zeros(2, 2, 2, 2), 2.0), "size is 2.0; it must be an int"),
        ((torch.zeros(2, 2, 2, 2), 3, math.inf), "alpha is inf; it must be a finite number"),
        ((torch.zeros(2, 2, 2, 2), 3, 1.0, math.nan), "beta is nan; it must be a finite number"),
        ((torch.zeros(2, 2, 2, 2), 3, 1.0, 0.75, -math.inf), "k is -inf"),
    ],
)
def test_bad_input(args, message):
    for f in (cnnkernels.local_response_norm, cnnkernels.relu_lrn):
        with pytest.raises(ValueError, match=message):
            f(*args)
    with pytest.raises(ValueError, match=message):
        cnnkernels.bias_relu_lrn(args[0], torch.zeros(2), *args[1:])


def test_bad_bias():
    x = torch.zeros(2, 4, 2, 2)
    for bias, message in [
        (torch.zeros(3), r"bias has shape \[3\]; it must be \[4\]"),
        (torch.zeros(4, 1), "bias has shape"),
        (torch.zeros(4, dtype=torch.double), "bias has dtype torch.float64"),
        (torch.zeros(4, device="meta"), "bias is on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            cnnkernels.bias_relu_lrn(x, bias, 3)


def test_compiled_and_exported():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.randn(6))

        def forward(self, x):
            y = cnnkernels.bias_relu_lrn(x * 2, self.bias, 5)
            return cnnkernels.relu_lrn(cnnkernels.local_response_norm(y, 3, 0.1), 4)

    net = Net()
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    expected = net(x)
    grads = torch.autograd.grad(expected.sum(), [x, net.bias])
    compiled = torch.compile(net, fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled.sum(), [x, net.bias]), grads)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (x.detach(),), dynamic_shapes={"x": {0: batch}}).module()
    for n in (1, 5):
        x = torch.randn(n, 6, 5, 5)
        torch.testing.assert_close(exported(x), net(x))


def opcheck_cases():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 6, 3, 4, dtype=dtype)
        bias = torch.randn(6, dtype=dtype, requires_grad=True)
        for a in (x, x.to(memory_format=torch.channels_last)):
            a = a.clone().requires_grad_()
            grad = torch.randn_like(a).requires_grad_()
            yield "local_response_norm", (a, 5)
            yield "relu_lrn", (a, 4, 0.1, 0.5, 2.0)
            yield "bias_relu_lrn", (a, bias, 3, 0.1)
            yield "_lrn_backward", (grad, a, None, 3, 0.1, 0.75, 1.0, False)
            yield "_lrn_backward", (grad, a, bias, 4, 0.1, 0.75, 1.0, True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [3, 5, 8])
def test_a_result_depends_on_its_window_alone(size, channels_last):
    """Sums that fp32 rounds too much for are taken in double, one by one: not because of a neighbour."""
    x = torch.randn(1, 40, 9, 70)
    x[:, ::3, :, ::4] *= 200  # some sums outweigh k, some don't, side by side
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    args = (size, 1e-4, 0.75, 2.0)
    out = cnnkernels.local_response_norm(x, *args)
    exact = oracles.local_response_norm(x, *args)
    assert compare.max_ulp_error(out, exact) <= 2
    for column in (0, 1, 37, 68):
        alone = cnnkernels.local_response_norm(x[..., column : column + 1], *args)
        assert torch.equal(alone, out[..., column : column + 1])
    part = cnnkernels.local_response_norm(x[:, 8:32], *args)[:, size : 24 - size]
    assert part.shape[1] > 0 and torch.equal(part, out[:, 8 + size : 32 - size])


@pytest.mark.parametrize(
    "args",
    [(5, 1e-4, 0.75, 2.0), (5, 3.0, 0.75, 1.0), (9, 0.5, 1.0, 1.0), (11, 2.0, 1.3, 0.1)],
    ids=str,
)
def test_float32_is_within_2_ulp_on_a_cpu(args):
    for scale in (1, 30):
        x = torch.randn(2, 64, 24, 24) * scale
        out = cnnkernels.local_response_norm(x, *args)
        assert compare.max_ulp_error(out, oracles.local_response_norm(x, *args)) <= 2
