"""The Triton kernels that ops call, run directly (in Triton's interpreter without a GPU) on fp64
oracles: values, layouts, NaN, and outputs written into a slice of a larger tensor."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cnnkernels.testing import compare, oracles

pytest.importorskip("triton")

from cnnkernels._triton.conv2d import conv2d
from cnnkernels._triton.global_avg_pool2d import global_avg_pool2d
from cnnkernels._triton.lrn import local_response_norm
from cnnkernels._triton.max_pool2d import max_pool2d
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


def conv_of(x, weight, stride, padding, groups=1):
    return space.Conv(
        *x.shape, weight.shape[0], *weight.shape[2:], stride, padding, (1, 1), groups,
        not x.is_contiguous(), x.element_size(),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_conv_into_a_channel_slice(layout, device):
    x = tensor(2, 16, 6, 6, dtype=torch.float16, device=device, layout=layout)
    weight = torch.randn(24, 16, 3, 3).to(device, torch.float16) / 12
    whole = torch.full((2, 64, 6, 6), torch.nan, dtype=torch.float16, device=device)
    whole = whole.contiguous(memory_format=layout)
    for config in space.conv_configs(conv_of(x, weight, (1, 1), (1, 1))):
        whole.fill_(torch.nan)
        conv2d(
            x, weight, None, None, (1, 1), (1, 1), (1, 1), 1, True,
            config=config, precision="ieee", out=whole[:, 16:40],
        )  # fmt: skip
        exact = oracles.relu(oracles.conv2d(x, weight, None, (1, 1), (1, 1)))
        compare.assert_close(
            whole[:, 16:40], exact, torch_out=F.conv2d(x, weight, None, 1, 1).relu()
        )
        assert whole[:, :16].isnan().all() and whole[:, 40:].isnan().all()
