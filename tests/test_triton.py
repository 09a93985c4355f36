"""The Triton kernels that ops call, run directly (in Triton's interpreter without a GPU) on fp64
oracles: values, layouts, NaN, and outputs written into a slice of a larger tensor."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import cnnkernels
from cnnkernels.testing import compare, oracles

pytest.importorskip("triton")

from triton_build import layers

from cnnkernels._triton.conv2d import conv2d, descriptor_why_not
from cnnkernels._triton.global_avg_pool2d import global_avg_pool2d
from cnnkernels._triton.lrn import local_response_norm
from cnnkernels._triton.max_pool2d import max_pool2d
from cnnkernels.ops import _conv2d
from cnnkernels.tuning import space

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def dtypes(device):
    # The interpreter's bfloat16 is not rounded as the hardware does.
    return [torch.float32, torch.float16] + [torch.bfloat16] * (device == "cuda")


def tensor(*shape, dtype, device, layout):
    return torch.randn(shape).to(device, dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("relu", [False, True])
def test_max_pool(layout, relu, device):
    for dtype in dtypes(device):
        x = tensor(2, 5, 11, 9, dtype=dtype, device=device, layout=layout)
        x[0, 1, 3, 4], x[0, 2, 8, 8] = torch.nan, -torch.inf
        x[1, 3] = -torch.inf
        for args in [
            ((2, 2), (2, 2), (0, 0), (1, 1), False),
            ((3, 3), (2, 2), (1, 1), (1, 1), True),
            ((3, 2), (1, 3), (1, 0), (2, 1), True),
        ]:
            out = max_pool2d(x, *args, relu)
            exact, _ = oracles.max_pool2d(x.relu() if relu else x, *args)
            assert torch.equal(out.double().nan_to_num(7), exact.nan_to_num(7))
            assert out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("relu", [False, True])
def test_local_response_norm(layout, relu, device):
    for dtype in dtypes(device):
        x = tensor(2, 7, 5, 3, dtype=dtype, device=device, layout=layout) * 8
        for size, alpha, beta, k in [(5, 1e-2, 0.75, 1.0), (4, 0.5, 0.5, 2.0), (1, 1.0, 0.0, 0.0)]:
            out = local_response_norm(x, None, size, alpha, beta, k, relu)
            exact = oracles.local_response_norm(
                oracles.relu(x) if relu else x, size, alpha, beta, k
            )
            compare.assert_close(out, exact, ulps=8 if dtype == torch.float32 else 2)
            assert out.stride() == x.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_global_avg_pool(layout, device):
    for dtype in dtypes(device):
        for shape in [(2, 70, 7, 7), (1, 3, 1, 1), (3, 5, 20, 17), (0, 4, 3, 3)]:
            x = tensor(*shape, dtype=dtype, device=device, layout=layout)
            exact = x.double().mean((2, 3), keepdim=True)
            compare.assert_close(global_avg_pool2d(x), exact, torch_out=F.adaptive_avg_pool2d(x, 1))


# n, c, h, w, k, r, s, stride, padding, dilation: one per way the descriptor kernels read
READS = {
    "matrix": (2, 32, 8, 8, 40, 1, 1, (1, 1), (0, 0), (1, 1)),
    "every second pixel": (2, 32, 9, 8, 40, 1, 1, (2, 2), (0, 0), (1, 1)),
    "shifted boxes": (2, 24, 9, 7, 32, 3, 3, (1, 1), (1, 1), (1, 1)),
    "dilated": (1, 16, 9, 9, 24, 3, 2, (1, 1), (2, 0), (2, 1)),
    "two chunks": (1, 96, 8, 8, 24, 3, 3, (1, 1), (1, 1), (1, 1)),
    "parities": (3, 16, 8, 10, 24, 3, 3, (2, 2), (1, 1), (1, 1)),
    "parities, 80 channels": (1, 80, 8, 8, 96, 3, 3, (2, 2), (1, 1), (1, 1)),
    "stem 7x7/2": (2, 3, 20, 22, 16, 7, 7, (2, 2), (3, 3), (1, 1)),
    "stem 11x11/4": (2, 3, 37, 33, 16, 11, 11, (4, 4), (0, 0), (1, 1)),
    "stem 3x3": (2, 3, 9, 8, 16, 3, 3, (1, 1), (1, 1), (1, 1)),
}


@contextlib.contextmanager
def channel_slice(shape, start, dtype, device, layout):
    """An output that is a slice of a wider tensor's channels; nothing beside it may be written."""
    n, k, *sizes = shape
    width = (start + k) // 8 * 8 + 8  # a pixel is a multiple of 16 bytes, for descriptors
    whole = torch.full((n, width, *sizes), -777, dtype=dtype, device=device)
    whole = whole.contiguous(memory_format=layout)
    out = whole[:, start : start + k]
    out.fill_(torch.nan)
    yield out
    assert (whole[:, :start] == -777).all() and (whole[:, start + k :] == -777).all()


def conv_of(x, weight, stride, padding, dilation=(1, 1), groups=1):
    return space.Conv(
        *x.shape, weight.shape[0], *weight.shape[2:], stride, padding, dilation, groups,
        not x.is_contiguous(), x.element_size(),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_conv_with_descriptors(read, device):
    n, c, h, w, k, r, s, *geometry = read
    for dtype in dtypes(device):
        tf32 = dtype == torch.float32 and device == "cuda"
        x = tensor(n, c, h, w, dtype=dtype, device=device, layout=torch.channels_last)
        weight = (torch.randn(k, c, r, s) / (c * r * s) ** 0.5).to(device, dtype)
        bias = torch.randn(k).to(device, dtype)
        exact = oracles.conv2d(x, weight, bias, *geometry)
        residual = tensor(*exact.shape, dtype=dtype, device=device, layout=torch.channels_last)
        exact = oracles.relu(exact + residual.double())
        plain = (F.conv2d(x, weight, bias, *geometry) + residual).relu()
        # Two multiprocessors, so that programs walk over several tiles.
        conv = replace(conv_of(x, weight, *geometry), residual=True)
        configs = space.descriptor_configs(conv, 90, 2, True)
        assert configs, "no descriptor config for a shape that is here for one"
        for config in configs:
            with channel_slice(exact.shape, 8, dtype, device, torch.channels_last) as out:
                conv2d(
                    x, weight, bias, residual, *geometry, 1, True,
                    config=config, precision="tf32" if tf32 else "ieee", out=out,
                )  # fmt: skip
            if tf32:
                assert compare.relative_error(out, exact) <= 1e-3
            else:
                compare.assert_close(out, exact, torch_out=plain)


def test_what_descriptors_cannot_take():
    geometry = dict(n=2, c=32, h=9, w=9, k=32, r=3, s=3, stride=(1, 1), padding=(1, 1),
                    dilation=(1, 1), groups=1, nhwc=True, element_size=2)  # fmt: skip
    assert space.descriptor_kind(space.Conv(**geometry)) == "taps"
    for change in [
        {"nhwc": False}, {"groups": 2}, {"c": 28}, {"k": 12}, {"element_size": 4},
        {"stride": (2, 2)}, {"stride": (3, 3)}, {"c": 3, "dilation": (2, 2)},
        {"r": 1, "s": 1, "stride": (2, 2)},
    ]:  # fmt: skip
        conv = space.Conv(**(geometry | change))
        assert space.descriptor_kind(conv) is None, change
        assert {c["kind"] for c in space.conv_configs(conv)} == {"pointer"}


@pytest.mark.parametrize("size", [(64, 56, 56), (64, 28, 28), (64, 14, 14), (64, 7, 7), (1, 5, 9)])
def test_boxes_cover_exactly_where_they_can(size):
    for pixels in (64, 128, 256):
        found = space.boxes(*size, pixels)
        assert all(a * b * c == pixels for _, (a, b, c) in found)
        assert len(set(found)) == len(found)
        if all(s % 2 == 0 for s in size[1:]) and size[0] == 64 and pixels <= 256:
            assert found[0][0] == 1.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("read", ["matrix", "shifted boxes", "parities, 80 channels"])
def test_conv_with_sliced_sums(read, device):
    n, c, h, w, k, r, s, *geometry = READS[read]
    c *= 32 if r == 1 else 2
    for dtype in dtypes(device):
        if dtype == torch.float32 and device == "cuda":
            continue
        x = tensor(n, c, h, w, dtype=dtype, device=device, layout=torch.channels_last)
        weight = (torch.randn(k, c, r, s) / (c * r * s) ** 0.5).to(device, dtype)
        bias = torch.randn(k).to(device, dtype)
        exact = oracles.conv2d(x, weight, bias, *geometry)
        residual = tensor(*exact.shape, dtype=dtype, device=device, layout=torch.channels_last)
        exact = oracles.relu(exact + residual.double())
        plain = (F.conv2d(x, weight, bias, *geometry) + residual).relu()
        conv = replace(conv_of(x, weight, *geometry), residual=True)
        configs = [c for c in space.descriptor_configs(conv, 90, 132, True) if "slices" in c]
        assert max(config["slices"] for config in configs) > 1
        configs.append(configs[0] | {"slices": 3})  # leaves the last slice shorter
        for config in configs:
            outs = []
            for _ in range(2):
                with channel_slice(exact.shape, 8, dtype, device, torch.channels_last) as out:
                    conv2d(
                        x, weight, bias, residual, *geometry, 1, True,
                        config=config, precision="ieee", out=out,
                    )  # fmt: skip
                outs.append(out)
            compare.assert_close(outs[0], exact, torch_out=plain)
            assert torch.equal(*outs)  # no atomics: the order of the sum is fixed


# n, c, h, w, k, r, s, stride, padding, dilation, groups of the kernel with computed addresses
ADDRESSES = {
    "3x3": (2, 16, 6, 6, 24, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "odd everything": (3, 5, 7, 9, 11, 3, 2, (2, 1), (0, 1), (1, 2), 1),
    "grouped, dilated": (2, 12, 9, 8, 20, 3, 3, (1, 1), (2, 2), (2, 2), 4),
    "depthwise": (2, 6, 8, 7, 6, 3, 3, (2, 2), (1, 1), (1, 1), 6),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", ADDRESSES.values(), ids=ADDRESSES)
def test_conv_with_computed_addresses(case, layout, device):
    n, c, h, w, k, r, s, *geometry, groups = case
    for dtype in dtypes(device):
        x = tensor(n, c, h, w, dtype=dtype, device=device, layout=layout)
        weight = (torch.randn(k, c // groups, r, s) / (c // groups * r * s) ** 0.5).to(
            device, dtype
        )
        bias = torch.randn(k).to(device, dtype)
        exact = oracles.conv2d(x, weight, bias, *geometry, groups)
        residual = tensor(*exact.shape, dtype=dtype, device=device, layout=layout)
        plain = F.conv2d(x, weight, bias, *geometry, groups) + residual
        for config in space.pointer_configs(conv_of(x, weight, *geometry, groups), 90):
            with channel_slice(exact.shape, 3, dtype, device, layout) as out:
                conv2d(
                    x, weight, bias, residual, *geometry, groups, False,
                    config=config, precision="ieee", out=out,
                )  # fmt: skip
            compare.assert_close(out, exact + residual.double(), torch_out=plain)


# n, c, h, w, k, r, s, stride, padding, layout: what precedes a 2x2/2 max-pool
POOLED = {
    "even": (2, 16, 8, 8, 24, 3, 3, (1, 1), (1, 1), torch.channels_last),
    "odd edges": (1, 16, 7, 11, 24, 3, 3, (1, 1), (1, 1), torch.channels_last),
    "1x1": (3, 16, 6, 6, 24, 1, 1, (1, 1), (0, 0), torch.channels_last),
    "parities": (1, 16, 8, 12, 24, 3, 3, (2, 2), (1, 1), torch.channels_last),
    "stem": (2, 3, 15, 15, 16, 5, 5, (2, 2), (2, 2), torch.channels_last),
    "nchw": (2, 6, 9, 10, 5, 5, 5, (1, 1), (0, 0), torch.contiguous_format),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", POOLED.values(), ids=POOLED)
def test_conv_with_max_pool(case, device):
    n, c, h, w, k, r, s, stride, padding, layout = case
    for dtype in dtypes(device):
        tf32 = dtype == torch.float32 and device == "cuda"
        x = tensor(n, c, h, w, dtype=dtype, device=device, layout=layout)
        x[0, 0, 0, 0] = torch.nan
        weight = (torch.randn(k, c, r, s) / (c * r * s) ** 0.5).to(device, dtype)
        bias = torch.randn(k).to(device, dtype)
        conv = replace(conv_of(x, weight, stride, padding), pool=True)
        configs = space.conv_configs(conv, 90, 2, tf32=True)
        assert {config["kind"] for config in configs} == (
            {"pointer"} if layout == torch.contiguous_format
            else {"pointer", "stem" if c == 3 else "taps"}
        )  # fmt: skip
        exact = oracles.relu(oracles.conv2d(x, weight, bias, stride, padding))
        exact, _ = oracles.max_pool2d(exact, (2, 2), (2, 2), (0, 0), (1, 1), False)
        plain = F.max_pool2d(F.conv2d(x, weight, bias, stride, padding).relu(), 2)
        assert exact.isnan().any() and not exact.isnan().all()
        for config in configs:
            with channel_slice(exact.shape, 8, dtype, device, layout) as out:
                conv2d(
                    x, weight, bias, None, stride, padding, (1, 1), 1, True,
                    config=config, precision="tf32" if tf32 else "ieee", out=out, pool=True,
                )  # fmt: skip
            assert torch.equal(out.isnan(), exact.isnan())
            out, right, rival = (t.nan_to_num(7) for t in (out, exact, plain))
            if tf32:
                assert compare.relative_error(out, right) <= 1e-3
            else:
                compare.assert_close(out, right, torch_out=rival)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not os.environ.get("CNNKERNELS_SLOW"), reason="minutes; CNNKERNELS_SLOW=1 runs it"
)
@pytest.mark.parametrize("extra", [{}, {"residual": True}, {"pool": True}], ids=str)
@pytest.mark.parametrize(
    "conv", list(layers()), ids=lambda c: f"{c.h}x{c.c}-{c.k}-{c.r}-{c.stride[0]}"
)
def test_every_config_is_right_on_a_real_layer(conv, extra):
    """What `tune` may choose from, on the layers whose kernels test_triton_compile.py compiles."""
    conv = replace(conv, **extra)
    layout = {"dtype": torch.bfloat16, "device": "cuda", "layout": torch.channels_last}
    x = tensor(conv.n, conv.c, conv.h, conv.w, **layout)
    weight = tensor(conv.k, conv.c, conv.r, conv.s, **layout) / (conv.c * conv.r * conv.s) ** 0.5
    bias = torch.randn(conv.k).to("cuda", torch.bfloat16)
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = F.conv2d(x.float(), weight.float(), bias.float(), *geometry)
    residual = tensor(*exact.shape, **layout) if conv.residual else None
    exact = (exact if residual is None else exact + residual.float()).relu()
    exact = F.max_pool2d(exact, 2) if conv.pool else exact
    gpu = torch.cuda.get_device_properties(0)
    wrong = []
    for config in space.conv_configs(conv, 10 * gpu.major + gpu.minor, gpu.multi_processor_count):
        with channel_slice(exact.shape, 8, x.dtype, "cuda", torch.channels_last) as out:
            conv2d(
                x, weight, bias, residual, *geometry, True,
                config=config, precision="ieee", out=out, pool=conv.pool,
            )  # fmt: skip
        error = compare.relative_error(out, exact)
        wrong += [] if error <= 5e-3 else [(error, config)]
    assert not wrong


@pytest.mark.parametrize("start", [8, 3])
def test_a_slice_that_no_descriptor_takes_is_written_all_the_same(start):
    x = tensor(2, 8, 6, 6, dtype=torch.float16, device="cpu", layout=torch.channels_last)
    weight = torch.randn(16, 8, 3, 3).half() / 9
    geometry = [1, 1], [1, 1], [1, 1], 1
    exact = oracles.conv2d(x, weight, None, *geometry)
    with channel_slice(exact.shape, start, x.dtype, "cpu", torch.channels_last) as out:
        assert (descriptor_why_not(out) is None) == (start == 8)
        _conv2d.triton_conv2d(x, weight, None, None, *geometry, False, out=out)
    compare.assert_close(out, exact, torch_out=F.conv2d(x, weight, None, 1, 1))


def test_the_pooled_op_on_triton():
    fn = cnnkernels.conv2d_relu_max_pool2d
    weight, bias = torch.randn(8, 8, 3, 3) / 9, torch.randn(8)
    for layout in LAYOUTS:
        x = tensor(2, 8, 7, 6, dtype=torch.float32, device="cpu", layout=layout)
        with cnnkernels.use("triton", strict=True):
            out = fn(x, weight, bias, padding=1)
            assert fn(x[:0], weight, bias, padding=1).shape == (0, 8, 3, 3)
            for options, reason in [
                ({"pool_kernel_size": 3, "pool_stride": 2}, "pools 2x2 windows of stride 2"),
                ({"ceil_mode": True}, "drops odd edges"),
                ({"stride": 7}, "the output would be 0x0"),
            ]:
                with pytest.raises((RuntimeError, ValueError), match=reason):
                    fn(x, weight, bias, padding=1, **options)
        exact = oracles.relu(oracles.conv2d(x, weight, bias, (1, 1), (1, 1)))
        compare.assert_close(
            out, F.max_pool2d(exact, 2), torch_out=F.max_pool2d(F.conv2d(x, weight, bias, 1, 1), 2).relu()
        )  # fmt: skip
        assert out.is_contiguous(memory_format=layout)
    decision = cnnkernels.explain(fn, x, weight, bias)[0]
    assert "not verified" in decision.rejected["triton"]
