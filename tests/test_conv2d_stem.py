"""The stem kernels' leaf ops and their choice; on a GPU against fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import cnnkernels
from cnnkernels import _lib
from cnnkernels.ops import _conv2d_stem
from cnnkernels.testing import compare, oracles

# k, filter, stride, padding, pool's padding and ceil_mode (None: no pool)
LAYERS = {
    "VGG": (64, 3, 1, 1, None),
    "ResNet": (64, 7, 2, 3, (1, False)),
    "GoogLeNet": (64, 7, 2, 3, (0, True)),
    "ZFNet": (96, 7, 2, 1, (1, False)),
    "AlexNet": (64, 11, 4, 2, (0, False)),
    "AlexNet, two towers in one": (96, 11, 4, 0, None),
}


def operands(layer, dtype, input_dtype, channels_last, size=67):
    k, kernel, _stride, _padding, _pool = LAYERS[layer]
    x = torch.randint(0, 256, (3, 3, size, size - 6)).to("cuda", input_dtype)
    if input_dtype != torch.uint8:
        x = x / 128 - 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(k, 3, kernel, kernel) / (3 * kernel**2) ** 0.5
    return x, weight.to("cuda", dtype), torch.randn(k).to("cuda", dtype)


def expected(layer, x, weight, bias, pooled):
    *_, stride, padding, pool = LAYERS[layer]
    exact = oracles.conv2d(x.to(weight.dtype), weight, bias, (stride, stride), (padding, padding))
    exact = oracles.relu(exact)
    return F.max_pool2d(exact, 3, 2, pool[0], ceil_mode=pool[1]) if pooled else exact


def leaf(layer, x, weight, bias, pooled):
    *_, stride, padding, pool = LAYERS[layer]
    geometry = ([stride, stride], [padding, padding], True)
    if pooled:
        return torch.ops.cnnkernels._conv2d_stem_pool_cuda(x, weight, bias, *geometry, *pool)
    return torch.ops.cnnkernels._conv2d_stem_cuda(x, weight, bias, *geometry)


needs_hopper = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
         and _lib.has_leaf("_conv2d_stem_pool_cuda")),
    reason="needs an sm_90 GPU and the CUDA library",
)  # fmt: skip


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_on_a_gpu(layer, dtype, channels_last):
    inputs = [dtype] if dtype == torch.float32 else [dtype, torch.float32, torch.uint8]
    pools = [False] if LAYERS[layer][-1] is None else [False, True]
    limit = 5e-3 if dtype == torch.bfloat16 else 1e-3
    for input_dtype, pooled in itertools.product(inputs, pools):
        args = operands(layer, dtype, input_dtype, channels_last)
        out = leaf(layer, *args, pooled)
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
        error = compare.relative_error(out, expected(layer, *args, pooled))
        assert error <= limit, f"input {input_dtype}, pooled {pooled}: {error}"
        assert torch.equal(out, leaf(layer, *args, pooled))


@pytest.mark.gpu
@needs_hopper
def test_new_kernels_run_when_forced_only(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for dtype, pooled in itertools.product([torch.bfloat16, torch.float32], [False, True]):
        x, weight, bias = operands("ResNet", dtype, dtype, True)

        def run():
            args = (x, weight, bias, 2, 3)  # noqa: B023
            if pooled:  # noqa: B023
                return cnnkernels.conv2d_relu_max_pool2d(*args, 1, 1, 3, 2, 1)
            return cnnkernels.conv2d_relu(*args)

        automatic = cnnkernels.explain(run)[0]
        if _conv2d_stem.unverified(x, weight, pooled):
            assert automatic.chosen != "cuda" or automatic.source.startswith("measured table")
        with cnnkernels.use("cuda", strict=True):
            assert cnnkernels.explain(run)[0].chosen == "cuda"
            out = run()
        error = compare.relative_error(out, expected("ResNet", x, weight, bias, pooled))
        assert error <= (5e-3 if dtype == torch.bfloat16 else 1e-3)
