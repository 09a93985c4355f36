"""First convolutions on images in another dtype than the weights': float32, uint8."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels
from cnnkernels.ops._op import OPS
from cnnkernels.optimize.passes import image
from cnnkernels.testing import compare, oracles

HALVES = (torch.float16, torch.bfloat16)
MIXES = [(x, w) for w in HALVES for x in (torch.float32, torch.uint8)]
MIXES.append((torch.uint8, torch.float32))
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# kernel, stride, padding, pool's padding and ceil_mode or None
STEMS = [(3, 1, 1, None), (7, 2, 3, (1, False)), (11, 4, 2, (0, True))]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def draw(x_dtype, w_dtype, stem=STEMS[1], x_layout=LAYOUTS[0], w_layout=LAYOUTS[0], device="cpu"):
    x = torch.randint(0, 256, (2, 3, 35, 37), dtype=torch.uint8)
    if x_dtype != torch.uint8:
        x = (x / 128 - 1).to(x_dtype)
    weight = torch.randn(16, 3, stem[0], stem[0]) / (3 * stem[0] ** 2) ** 0.5
    if x_dtype == torch.uint8:
        weight /= 64
    x, weight = x.to(device, memory_format=x_layout), weight.to(device, memory_format=w_layout)
    return x, weight.to(w_dtype), torch.randn(16).to(device, w_dtype)


def run(x, weight, bias, stem, relu=True):
    _, stride, padding, pool = stem
    if pool is not None:
        pool = (3, 2, pool[0], 1, pool[1])
        return cnnkernels.conv2d_relu_max_pool2d(x, weight, bias, stride, padding, 1, 1, *pool)
    return (cnnkernels.conv2d_relu if relu else cnnkernels.conv2d)(x, weight, bias, stride, padding)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stem", STEMS, ids=str)
@pytest.mark.parametrize("dtypes", MIXES, ids=str)
def test_against_fp64(dtypes, stem, device):
    for x_layout, w_layout in itertools.product(LAYOUTS, LAYOUTS):
        args = draw(*dtypes, stem, x_layout, w_layout, device)
        x, weight, bias = args
        _, stride, padding, pool = stem
        for backend in ["auto", "reference", *["cuda"] * (device == "cuda")]:
            with cnnkernels.use(backend):
                out = run(*args, stem)
                assert "conv2d_image" in [d.op for d in cnnkernels.explain(run, *args, stem)]
            assert out.dtype == weight.dtype
            either = (
                torch.channels_last if torch.channels_last in (x_layout, w_layout) else x_layout
            )
            assert out.is_contiguous(memory_format=either)
            exact = oracles.relu(
                oracles.conv2d(x.to(weight.dtype), weight, bias, (stride,) * 2, (padding,) * 2)
            )
            if pool is not None:
                exact = F.max_pool2d(exact, 3, 2, pool[0], ceil_mode=pool[1])
            limit = {torch.bfloat16: 5e-3, torch.float16: 1e-3}.get(weight.dtype, 1e-5)
            if device == "cuda" and weight.dtype == torch.float32:
                limit = 1e-3  # TF32
            assert compare.relative_error(out, exact) <= limit


@pytest.mark.parametrize("relu", [False, True])
def test_what_the_kernel_does_not_take_is_cast(relu):
    """Groups, dilation, padding by name, other pools and 3-D inputs are those of equal dtypes."""
    x, weight, bias = draw(torch.float32, torch.bfloat16, STEMS[0])
    low, op = x.bfloat16(), cnnkernels.conv2d_relu if relu else cnnkernels.conv2d
    cases = [
        ((weight, bias, 1, "same"), {}), ((weight, bias, 1, 2, 2), {}),
        ((weight[:15, :1].contiguous(), bias[:15], 1, 1, 1, 3), {}), ((weight,), {}),
    ]  # fmt: skip
    for args, options in cases:
        assert torch.equal(op(x, *args, **options), op(low, *args, **options))
        assert torch.equal(op(x[0], *args, **options), op(low[0], *args, **options))
    pooled = cnnkernels.conv2d_relu_max_pool2d
    assert torch.equal(pooled(x, weight, bias), pooled(low, weight, bias))
    residual = torch.randn(2, 16, 33, 35, dtype=torch.bfloat16)
    fused = cnnkernels.conv2d_add_relu
    assert torch.equal(fused(x, weight, residual, bias), fused(low, weight, residual, bias))
    assert op(x[:0], weight).shape == (0, 16, 33, 35) and op(x[:0], weight).dtype == weight.dtype


@pytest.mark.parametrize("stem", STEMS, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_the_cast(stem, relu):
    for bias_too in (True, False):
        x, weight, bias = (t.requires_grad_() for t in draw(torch.float32, torch.bfloat16, stem))
        bias = bias if bias_too else None
        wanted = [t for t in (x, weight, bias) if t is not None]
        out = run(x, weight, bias, stem, relu)
        grad = torch.randn_like(out)
        found = torch.autograd.grad(out, wanted, grad)
        expected = torch.autograd.grad(run(x.bfloat16(), weight, bias, stem, relu), wanted, grad)
        for a, b, t in zip(found, expected, wanted):
            assert a.dtype == t.dtype
            torch.testing.assert_close(a, b)
    x, weight, bias = draw(torch.uint8, torch.float32, stem)
    (found,) = torch.autograd.grad(run(x, weight.requires_grad_(), bias, stem).sum(), weight)
    (expected,) = torch.autograd.grad(run(x.float(), weight, bias, stem).sum(), weight)
    torch.testing.assert_close(found, expected)


def test_errors_name_both_dtypes():
    x, weight, _ = draw(torch.float32, torch.float32)
    with pytest.raises(
        ValueError, match=r"weight has dtype torch\.float32, but the input has torch\.float16"
    ):
        cnnkernels.conv2d_relu(x.half(), weight)  # less exact than the weights
    with pytest.raises(ValueError, match=r"weight has dtype torch\.bfloat16"):
        cnnkernels.conv2d(torch.cat([x, x], 1), torch.cat([weight, weight], 1).bfloat16())
    with pytest.raises(ValueError, match=r"input has dtype torch\.uint8; allowed are"):
        cnnkernels.conv2d(torch.cat([x, x], 1).byte(), torch.cat([weight, weight], 1))
    op = torch.ops.cnnkernels.conv2d_image
    with pytest.raises(
        ValueError, match=r"input has dtype torch\.int64; with a weight of torch\.float16"
    ):
        op(x.long(), weight.half())
    with pytest.raises(ValueError, match=r"input has shape \[2, 4, 35, 37\]; an image is"):
        op(x[:, [0, 1, 2, 0]], weight.half())
    with pytest.raises(ValueError, match=r"pool is \[1\]; allowed are"):
        op(x, weight.half(), pool=[1])
    with pytest.raises(ValueError, match=r"bias has dtype torch\.float32"):
        op(x, weight.half(), torch.randn(16))


def test_autocast_casts_as_always():
    x, weight, bias = draw(torch.uint8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = cnnkernels.conv2d_relu(x, weight, bias, 2, 3)
        assert torch.equal(out, cnnkernels.conv2d_relu(x.bfloat16(), weight, bias, 2, 3))
    assert out.dtype == torch.bfloat16


class Stem(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.pool, self.last = pool, nn.Conv2d(16, 8, 3)

    def forward(self, x):
        return self.last(self.pool(F.relu(self.bn(self.conv(x)))))


@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_optimize_reads_images_as_they_are(device, pool, monkeypatch):
    """On a GPU; here with the operation's reference."""
    from cnnkernels.optimize.passes import relu_pool

    monkeypatch.setattr(image, "_wanted", lambda net: True)
    monkeypatch.setattr(relu_pool, "run", lambda net: None)  # a CPU's pass
    model = Stem(pool).eval()
    model.bn.running_mean.normal_()
    model, x = model.to(device), torch.randn(2, 3, 40, 40, device=device)
    fast = cnnkernels.optimize(model, x, dtype=torch.bfloat16, layout="channels_last")
    names = [n.target._opname for n in fast.plan.net.graph.nodes if n.op == "call_function"]
    taken = not (isinstance(pool, nn.MaxPool2d) and pool.kernel_size == 2)
    assert ("conv2d_image" in names) == taken and len(names) == 2
    assert sum(kind.endswith(image.KIND) for kind, _ in fast.report.fused) == taken
    for y in (
        x,
        torch.randn(5, 3, 40, 40, device=device),
        x.bfloat16(),
        x.double(),
        x.to(memory_format=LAYOUTS[1]),
    ):
        with torch.no_grad():
            expected = model(y.float())
        error = (fast(y).float() - expected).abs().max() / expected.abs().max()
        assert error < 3e-2
    whole = cnnkernels.optimize(model, x)  # in float32 there is nothing to cast
    half = cnnkernels.optimize(model.bfloat16(), x.bfloat16())  # nor here
    for plan in (whole.plan, half.plan):
        assert not plan.net.calls(torch.ops.cnnkernels.conv2d_image.default)


def test_keys_of_the_measured_table_tell_images_apart():
    keys = set()
    for x_dtype, w_dtype in [*MIXES, (torch.bfloat16, torch.bfloat16)]:
        x, weight, bias = draw(x_dtype, w_dtype)
        key = OPS["conv2d_image"].key((x, weight, bias, [2, 2], [3, 3], True, [1, 0]))
        assert key.startswith(f"conv2d_image/{str(w_dtype).removeprefix('torch.')}/nchw/2x3x35x37-")
        keys.add(key)
    assert len(keys) == len(MIXES) + 1


def opcheck_cases():
    for dtypes, stem in zip(MIXES, [*STEMS, *STEMS]):
        x, weight, bias = draw(*dtypes, stem)
        pool = [] if stem[-1] is None else [int(v) for v in stem[-1]]
        if weight.dtype != torch.float16:
            weight.requires_grad_()
        yield "conv2d_image", (x, weight, bias, [stem[1]] * 2, [stem[2]] * 2, True, pool)
