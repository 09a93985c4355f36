"""The convolution ops against fp64: values, layouts, gradients, every implementation, bad input."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import cnnkernels
from cnnkernels import _lib
from cnnkernels.ops._op import OPS as REGISTRY
from cnnkernels.testing import compare, oracles

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BACKENDS = ["cuda", "cudnn", "cpu", "triton", "reference"]
OPS = ["conv2d", "conv2d_relu", "conv2d_add", "conv2d_add_relu"]

# n, c, h, w, k, r, s, stride, padding, dilation, groups
SHAPES = {
    "1x1": (2, 8, 7, 5, 12, 1, 1, 1, 0, 1, 1),
    "1x1/2": (2, 8, 7, 6, 12, 1, 1, 2, 0, 1, 1),
    "1x1 map": (2, 8, 1, 1, 12, 1, 1, 1, 0, 1, 1),
    "3x3": (1, 16, 8, 8, 24, 3, 3, 1, 1, 1, 1),
    "3x3/2": (2, 8, 9, 8, 8, 3, 3, 2, 1, 1, 1),
    "5x3 uneven": (1, 8, 9, 8, 8, 5, 3, (2, 1), (2, 0), (1, 2), 1),
    "groups": (2, 12, 6, 6, 18, 3, 3, 1, 1, 1, 3),
    "depthwise": (1, 6, 7, 7, 6, 3, 3, 1, 1, 1, 6),
    "stem 7x7/2": (1, 3, 17, 17, 8, 7, 7, 2, 3, 1, 1),
    "odd channels": (1, 5, 6, 6, 7, 3, 3, 1, 1, 1, 1),
}


def pair(v):
    return v if isinstance(v, tuple) else (v, v)


def draw(shape, dtype, channels_last=False, device="cpu"):
    """(x, weight, bias, geometry): values of about one, so that fp16 keeps its digits."""
    n, c, h, w, k, r, s, stride, padding, dilation, groups = shape
    x = torch.randn(n, c, h, w)
    weight = torch.randn(k, c // groups, r, s) / (c // groups * r * s) ** 0.5
    x, weight, bias = (t.to(device, dtype) for t in (x, weight, torch.randn(k)))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, weight, bias, (pair(stride), pair(padding), pair(dilation), groups)


def expected(name, x, weight, bias, geometry, residual=None, torch_too=True):
    """(fp64 oracle, PyTorch's own result at x's dtype)."""
    exact = oracles.conv2d(x, weight, bias, *geometry)
    plain = F.conv2d(x, weight, bias, *geometry) if torch_too else None
    if "add" in name:
        exact = exact + residual.double()
        plain = plain + residual if torch_too else None
    if "relu" in name:
        exact = oracles.relu(exact)
        plain = plain.relu() if torch_too else None
    return exact, plain


def run(name, x, weight, bias, geometry, residual=None):
    args = (x, weight, residual, bias) if "add" in name else (x, weight, bias)
    return getattr(cnnkernels, name)(*args, *geometry)


def runs(backend, name, args) -> str | None:
    """Why this backend is not what runs here, or None."""
    with cnnkernels.use(backend):
        decision = cnnkernels.explain(lambda: run(name, *args))[0]
    return None if decision.chosen == backend else decision.rejected[backend]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_fp64(shape, channels_last, backend, device):
    ran = 0
    for dtype in DTYPES:
        if (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
            continue  # the interpreter's bfloat16 dot is wrong
        for name in OPS:
            x, weight, bias, geometry = draw(shape, dtype, channels_last, device)
            residual = torch.randn_like(F.conv2d(x, weight, None, *geometry))
            bias = None if name == "conv2d_add" else bias
            args = (x, weight, bias, geometry, residual)
            reason = runs(backend, name, args)
            if reason is not None:
                continue
            ran += 1
            before = residual.clone()
            with cnnkernels.use(backend, strict=True):
                out = run(name, *args)
            exact, plain = expected(name, *args)
            if device == "cuda" and dtype == torch.float32:  # TF32, for which torch may not opt
                assert compare.relative_error(out, exact) <= 1e-3
            else:
                compare.assert_close(out, exact, torch_out=plain)
            assert out.dtype == dtype and torch.equal(residual, before)
            wanted = torch.channels_last if channels_last else torch.contiguous_format
            assert out.is_contiguous(memory_format=wanted)
    if not ran:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_channel_slice_of_a_wider_tensor(backend, device):
    """A slice of a channels_last tensor stays channels_last, in the op and in its fake."""
    wide = torch.randn(2, 48, 7, 6).to(device, torch.float16)
    wide = wide.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(16, 24, 3, 3).to(device, wide.dtype) / 15, torch.zeros(16).to(wide)
    for first in (0, 8, 20):  # TMA reads the first two in place
        x = wide[:, first : first + 24]
        args = (x, weight, bias, [1, 1], [1, 1])
        with cnnkernels.use(backend):
            out = cnnkernels.conv2d_relu(*args)
            dense = cnnkernels.conv2d_relu(
                x.contiguous(memory_format=torch.channels_last), *args[1:]
            )
        assert out.is_contiguous(memory_format=torch.channels_last)
        exact, plain = expected("conv2d_relu", x, weight, bias, ([1, 1], [1, 1], [1, 1], 1))
        compare.assert_close(out, exact, torch_out=plain)
        assert backend != "cuda" or torch.equal(out, dense)
        with FakeTensorMode() as mode:
            fake = torch.ops.cnnkernels.conv2d_relu(
                *(mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in args)
            )
        assert fake.stride() == out.stride()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    n=st.integers(0, 2), cg=st.integers(1, 9), kg=st.integers(1, 9), groups=st.integers(1, 3),
    h=st.integers(1, 9), w=st.integers(1, 9), r=st.integers(1, 4), s=st.integers(1, 4),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    name=st.sampled_from(OPS), dtype=st.sampled_from(DTYPES), channels_last=st.booleans(),
    weight_last=st.booleans(), residual_last=st.booleans(), with_bias=st.booleans(),
    offset=st.integers(0, 3), backend=st.sampled_from(["auto", "triton"]),
)  # fmt: skip
def test_any_geometry(
    n, cg, kg, groups, h, w, r, s, stride, padding, dilation, name, dtype, channels_last,
    weight_last, residual_last, with_bias, offset, backend,
):  # fmt: skip
    assume(dilation[0] * (r - 1) < h + 2 * padding[0])
    assume(dilation[1] * (s - 1) < w + 2 * padding[1])
    if backend == "triton" and dtype == torch.bfloat16:
        dtype = torch.float16  # the interpreter's bfloat16 dot is wrong
    c = cg * groups
    x, weight, bias, geometry = draw(
        (n, c, h, w, kg * groups, r, s, stride, padding, dilation, groups), dtype
    )
    flat = torch.cat([torch.zeros(offset, dtype=dtype), x.flatten()])[offset:]  # odd start
    x = flat.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else flat.view(n, c, h, w)
    if weight_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    bias = bias if with_bias else None
    residual = torch.randn(F.conv2d(x, weight, None, *geometry).shape).to(dtype)
    if residual_last:
        residual = residual.contiguous(memory_format=torch.channels_last)
    with cnnkernels.use(backend):
        out = run(name, x, weight, bias, geometry, residual)
    exact, plain = expected(name, x, weight, bias, geometry, residual)
    compare.assert_close(out, exact, torch_out=plain)
    fake = torch.empty_like(exact, dtype=dtype, device="meta")
    if channels_last and not x.is_contiguous():
        fake = fake.contiguous(memory_format=torch.channels_last)
    if n:
        assert torch._prims_common.check_significant_strides(out, fake)[0]


@pytest.mark.parametrize("name", OPS)
def test_gradcheck(name):
    x, weight, bias, geometry = draw((1, 2, 4, 3, 4, 3, 2, (2, 1), 1, 1, 2), torch.float64)
    residual = torch.randn_like(F.conv2d(x, weight, None, *geometry))
    args = [t.requires_grad_() for t in (x, weight, bias, residual)]

    def fn(x, weight, bias, residual):
        return run(name, x, weight, bias, geometry, residual)

    if "add" not in name:
        args, full = args[:3], fn
        fn = lambda x, weight, bias: full(x, weight, bias, None)  # noqa: E731
    assert torch.autograd.gradcheck(fn, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, args, fast_mode=True)


def test_gradcheck_with_pool():
    x, weight, bias, geometry = draw((1, 2, 4, 3, 2, 3, 3, 1, 1, 1, 1), torch.float64)
    args = [t.requires_grad_() for t in (x, weight, bias)]

    def fn(*tensors):
        return cnnkernels.conv2d_relu_max_pool2d(*tensors, *geometry, 3, 2, 1)

    assert torch.autograd.gradcheck(fn, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, args, fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_gradients_are_torchs(device, channels_last):
    x, weight, bias, geometry = draw(SHAPES["3x3/2"], torch.float32, channels_last, device)
    residual = torch.randn_like(F.conv2d(x, weight, None, *geometry))
    grad = torch.randn_like(residual)
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
    ours = torch.autograd.grad(
        run("conv2d_add_relu", *leaves[:3], geometry, residual), leaves, grad
    )
    plain = (F.conv2d(x, weight, bias, *geometry) + residual).relu()
    for a, b in zip(ours, torch.autograd.grad(plain, leaves, grad)):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)  # TF32 on a GPU


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_relu_max_pool(channels_last, device):
    for dtype in DTYPES:
        x, weight, bias, geometry = draw(SHAPES["3x3"], dtype, channels_last, device)
        for pool in [(2,), (3, 2), (3, 2, 1, 1, True), ((3, 2), (1, 2), (1, 0), (1, 2))]:
            out = cnnkernels.conv2d_relu_max_pool2d(x, weight, bias, *geometry, *pool)
            exact, plain = expected("conv2d_relu", x, weight, bias, geometry)
            exact, plain = (F.max_pool2d(t, *pool) for t in (exact, plain))
            if device == "cuda" and dtype == torch.float32:
                assert compare.relative_error(out, exact) <= 1e-3  # TF32
            else:
                compare.assert_close(out, exact, torch_out=plain)
            wanted = torch.channels_last if channels_last else torch.contiguous_format
            assert out.is_contiguous(memory_format=wanted)
    with cnnkernels.use("reference"):
        decisions = cnnkernels.explain("conv2d_relu_max_pool2d", x, weight, bias, *geometry)
    assert [d.op for d in decisions] == ["conv2d_relu_max_pool2d", "conv2d_relu", "max_pool2d"]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_strings_and_unbatched(padding):
    for r, s, dilation in [(3, 3, 1), (2, 4, 1), (4, 3, (1, 3))]:
        x, weight = torch.randn(2, 4, 13, 12), torch.randn(8, 4, r, s)
        for a in (x, x[0], x.to(memory_format=torch.channels_last)):
            out = cnnkernels.conv2d(a, weight, None, 1, padding, dilation)
            torch.testing.assert_close(
                out, F.conv2d(a, weight, None, 1, padding, dilation), rtol=1e-4, atol=1e-4
            )
    out = cnnkernels.conv2d_add_relu(x[0], weight, F.conv2d(x, weight)[0])
    torch.testing.assert_close(out, (2 * F.conv2d(x[0], weight)).relu(), rtol=1e-4, atol=1e-4)


def test_any_strides():
    x, weight = torch.randn(2, 6, 18, 16)[:, ::2, 1::2, ::2], torch.randn(3, 3, 3, 5)[..., ::2]
    torch.testing.assert_close(cnnkernels.conv2d(x, weight), F.conv2d(x, weight))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("name", ["conv2d_relu", "conv2d_add_relu"])
def test_nan_passes_the_relu(backend, name, device):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    x, weight, bias, geometry = draw(SHAPES["3x3"], dtype, True, device)
    x[0, 3, 4, 4] = torch.nan
    plain = F.conv2d(x, weight, bias, *geometry)
    args = (x, weight, bias, geometry, torch.randn_like(plain))
    if backend != "auto" and (reason := runs(backend, name, args)) is not None:
        pytest.skip(f"{backend}: {reason}")
    with cnnkernels.use(backend):
        out = run(name, *args)
    assert torch.equal(out.isnan(), plain.isnan())
    assert out.isnan().any()


BAD = [
    (dict(input=torch.zeros(4, 4)), ValueError, r"input has shape \[4, 4\]"),
    (dict(input=torch.zeros(1, 4, 8, 8, dtype=torch.int32)), ValueError, "input has dtype"),
    (dict(input=[1.0]), TypeError, "input must be a Tensor, got list"),
    (dict(input=torch.zeros(1, 4, 0, 8)), ValueError, "only its batch may be empty"),
    (dict(weight=torch.zeros(6, 4, 3)), ValueError, r"weight has shape \[6, 4, 3\]"),
    (dict(weight=torch.zeros(6, 4, 0, 3)), ValueError, "no size may be 0"),
    (dict(weight=torch.zeros(6, 4, 3, 3).half()), ValueError, "weight has dtype torch.float16"),
    (dict(weight=torch.zeros(6, 4, 3, 3, device="meta")), ValueError, "weight is on meta"),
    (dict(weight=torch.zeros(6, 5, 3, 3)), ValueError, "input has 4 channels, but weight"),
    (dict(weight=torch.zeros(6, 4, 9, 3)), ValueError, r"kernel is 9 high.*8 \+ 2 \* 0"),
    (dict(bias=torch.zeros(5)), ValueError, r"bias has shape \[5\]; it must be \[6\]"),
    (dict(stride=0), ValueError, "stride is 0; it must be at least 1"),
    (dict(stride=(1, 2, 3)), ValueError, r"stride is \(1, 2, 3\); it must be an int or a pair"),
    (dict(stride=1.5), ValueError, "stride is 1.5"),
    (dict(padding=-1), ValueError, "padding is -1; it must be at least 0"),
    (dict(padding="full"), ValueError, "padding is 'full'; allowed are 'same', 'valid'"),
    (dict(padding="same", stride=2), ValueError, "stride is 2; padding='same' takes stride 1"),
    (dict(dilation=0), ValueError, "dilation is 0"),
    (dict(dilation=4), ValueError, r"9 with dilation=4"),
    (dict(groups=0), ValueError, "groups is 0"),
    (dict(groups=4), ValueError, "weight has 6 output channels, not a multiple of groups=4"),
    (dict(groups=2), ValueError, "groups=2 takes 8"),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[str(b[2])[:40] for b in BAD])
def test_bad_input(change, error, message):
    args = dict(input=torch.zeros(1, 4, 8, 8), weight=torch.zeros(6, 4, 3, 3), **{})
    with pytest.raises(error, match=message):
        cnnkernels.conv2d_relu(**(args | change))
    if error is ValueError and not isinstance(change.get("padding"), str):
        with pytest.raises((ValueError, RuntimeError)):  # the op itself checks too
            torch.ops.cnnkernels.conv2d_relu(**(args | change))


def test_bad_residual_and_pool():
    x, weight = torch.zeros(1, 4, 8, 8), torch.zeros(6, 4, 3, 3)
    with pytest.raises(ValueError, match=r"residual has shape .*; it must be \[1, 6, 6, 6\]"):
        cnnkernels.conv2d_add_relu(x, weight, torch.zeros(1, 6, 8, 8))
    with pytest.raises(TypeError, match="residual must be a Tensor, got NoneType"):
        cnnkernels.conv2d_add_relu(x, weight, None)
    with pytest.raises(ValueError, match=r"pool_padding is .*at most half"):
        cnnkernels.conv2d_relu_max_pool2d(x, weight, pool_kernel_size=3, pool_padding=2)
    with pytest.raises(ValueError, match=r"convolution's output has .* pool_kernel_size \[7, 7\]"):
        cnnkernels.conv2d_relu_max_pool2d(x, weight, pool_kernel_size=7)


def test_flops_are_torchs_plus_the_residual():
    x, weight, bias, geometry = draw(SHAPES["groups"], torch.float32)
    residual = F.conv2d(x, weight, None, *geometry)

    def count(fn):
        with FlopCounterMode(display=False) as counter:
            fn()
        return counter.get_total_flops()

    plain = count(lambda: F.conv2d(x, weight, bias, *geometry))
    assert plain == 2 * residual.numel() * weight[0].numel()
    assert count(lambda: run("conv2d_relu", x, weight, bias, geometry)) == plain
    assert (
        count(lambda: run("conv2d_add_relu", x, weight, bias, geometry, residual))
        == plain + residual.numel()
    )
    pooled = count(lambda: cnnkernels.conv2d_relu_max_pool2d(x, weight, bias, *geometry))
    assert pooled == plain


def test_autocast_lowers():
    x, weight, bias, geometry = draw(SHAPES["3x3"], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert run("conv2d_relu", x, weight, bias, geometry).dtype == torch.bfloat16
        assert run("conv2d_relu", x.bfloat16(), weight, bias, geometry).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="weight has dtype"):
        run("conv2d_relu", x.bfloat16(), weight, bias, geometry)


def test_compiled_and_exported_with_dynamic_batch():
    class Net(torch.nn.Module):
        def forward(self, x, weight, z):
            y = cnnkernels.conv2d_relu(x, weight, padding="same")
            return cnnkernels.conv2d_add_relu(y, weight, z, padding=1)

    x, weight, z = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3), torch.randn(2, 4, 6, 6)
    wanted = Net()(x, weight, z)
    compiled = torch.compile(Net(), fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x, weight, z), wanted)
    batch = torch.export.Dim("batch", min=2, max=64)
    dims = ({0: batch}, None, {0: batch})
    exported = torch.export.export(Net(), (x, weight, z), dynamic_shapes=dims).module()
    assert torch.equal(exported(x, weight, z), wanted)
    assert exported(torch.randn(5, 4, 6, 6), weight, torch.randn(5, 4, 6, 6)).shape[0] == 5


def opcheck_cases():
    """For tests/test_registration.py."""
    for name, channels_last, dtype in itertools.product(
        [*OPS, "conv2d_relu_max_pool2d"], [False, True], [torch.float32, torch.float64]
    ):
        x, weight, bias, geometry = draw(SHAPES["groups"], dtype, channels_last)
        residual = torch.randn_like(F.conv2d(x, weight, None, *geometry)).requires_grad_()
        x, weight, bias = (t.requires_grad_() for t in (x, weight, bias))
        tensors = (x, weight, residual, bias) if "add" in name else (x, weight, bias)
        stride, padding, dilation, groups = geometry
        yield name, (*tensors, [*stride], [*padding], [*dilation], groups)


def test_explain_tells_the_planners_instance_and_estimate(monkeypatch):
    if not hasattr(_lib.plan, "conv_plans"):
        pytest.skip("the planner was not built")

    def on_paper(name, *args):  # as if the GPU were here
        impls = REGISTRY[name].impls
        reference = impls["reference"].fn
        paper = dataclasses.replace(
            impls["cuda"], why_not=lambda *a: None, fn=lambda *a, config=None: reference(*a)
        )
        monkeypatch.setitem(impls, "cuda", paper)
        with cnnkernels.use("cuda"):
            decision = cnnkernels.explain(name, *args)[0]
        assert decision.chosen == "cuda" and decision.detail in str(decision)
        return decision.detail

    shape = (2, 64, 28, 28, 128, 3, 3, 1, 1, 1, 1)
    x, weight, bias, geometry = draw(shape, torch.bfloat16, True)
    best = _lib.plan.conv_choose(list(x.shape), list(weight.shape), *geometry, "bfloat16")
    plain = on_paper("conv2d_relu", x, weight, bias, *geometry)
    assert plain == f"{best['instance']}: {best['reason']}" and "waves" in plain
    pooled = on_paper("conv2d_relu_max_pool2d", x, weight, bias, *geometry)
    assert "halo" in pooled and "estimated" in pooled
