"""Memory-bound ops on a GPU: against cuDNN itself, and on tensors past 2^31 elements."""

from __future__ import annotations

import cudnn_direct
import pytest
import torch

import cnnkernels
from cnnkernels.testing import compare

pytestmark = pytest.mark.gpu
FORMATS = [torch.contiguous_format, torch.channels_last]
LAYOUTS = pytest.mark.parametrize("layout", FORMATS, ids=["nchw", "nhwc"])
CUDNN_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


@CUDNN_DTYPES
@LAYOUTS
@pytest.mark.parametrize("window", [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_max_pool2d_equals_cudnns(dtype, layout, window):
    # Distinct values: which of several maxima gets the gradient is each library's own rule.
    # Those of a plane fit into fp16, and integer gradients make every order of sums the same.
    n, c, h, w = 4, 24, 31, 29
    planes = [torch.randperm(h * w, device="cuda") for _ in range(n * c)]
    x = (torch.stack(planes).view(n, c, h, w) - h * w // 2).to(dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()
    with cnnkernels.use("cuda"):
        out = cnnkernels.max_pool2d(x, *window)
        grad = torch.randint(-4, 5, out.shape, device="cuda").to(dtype)
        out.backward(grad)
    try:
        y, dx = cudnn_direct.max_pool2d(x.detach(), *window, out.shape[2:], grad)
    except cudnn_direct.Unsupported as error:
        pytest.skip(str(error))
    assert torch.equal(out, y) and torch.equal(x.grad, dx)


@CUDNN_DTYPES
@LAYOUTS
@pytest.mark.parametrize(
    "parameters", [(5, 1e-4, 0.75, 2.0), (5, 0.5, 0.75, 1.0), (3, 0.1, 0.5, 1.0)]
)
def test_lrn_agrees_with_cudnns(dtype, layout, parameters):
    x = torch.randn(4, 48, 13, 11, device="cuda").to(dtype).contiguous(memory_format=layout)
    grad = torch.randn_like(x)
    x.requires_grad_()
    with cnnkernels.use("cuda"):
        out = cnnkernels.local_response_norm(x, *parameters)
        out.backward(grad)
    try:
        y, dx = cudnn_direct.local_response_norm(x.detach(), grad, *parameters)
    except cudnn_direct.Unsupported as error:
        pytest.skip(str(error))
    allowed = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert compare.relative_error(y, out) <= allowed
    assert compare.relative_error(dx, x.grad) <= allowed


LARGE = {
    "max_pool2d 3x3/2": lambda x: cnnkernels.max_pool2d(x, 3, 2),
    "max_pool2d 3x3/1": lambda x: cnnkernels.max_pool2d(x, 3, 1, 1),
    "max_pool2d 5x5/2": lambda x: cnnkernels.max_pool2d(x, 5, 2, 2),
    "relu_max_pool2d 2x2/2": lambda x: cnnkernels.relu_max_pool2d(x, 2, 2),
    "local_response_norm": lambda x: cnnkernels.local_response_norm(x, 5),
    "local_response_norm, size 3": lambda x: cnnkernels.local_response_norm(x, 3),
    "relu_lrn_max_pool2d": lambda x: cnnkernels.relu_lrn_max_pool2d(x, 5, 1e-4, 0.75, 1.0, 3, 2),
    "add_relu": lambda x: cnnkernels.add_relu(x, x.detach()),
    "global_avg_pool2d": cnnkernels.global_avg_pool2d,
}


@LAYOUTS
@pytest.mark.parametrize("name", LARGE)
def test_past_two_to_the_31_elements(layout, name):
    """First, middle and last images give what they give alone, forward and backward."""
    shape = (1100, 64, 176, 176)  # 2.18e9 elements, 4.4 GB
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 48 << 30:
        pytest.skip("needs 48 GiB of GPU memory")
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=layout).normal_()
    x.requires_grad_()
    with cnnkernels.use("cuda"):
        out = LARGE[name](x)
        grad = torch.randint(-2, 3, out.shape[1:], device="cuda").to(out.dtype)
        out.backward(grad.expand_as(out).contiguous(memory_format=layout))
        for image in (0, shape[0] // 2, shape[0] - 1):
            one = x.detach()[image : image + 1].clone(memory_format=layout).requires_grad_()
            alone = LARGE[name](one)
            alone.backward(grad[None].contiguous(memory_format=layout))
            assert torch.equal(out[image], alone[0]), image
            assert torch.equal(x.grad[image], one.grad[0]), image
