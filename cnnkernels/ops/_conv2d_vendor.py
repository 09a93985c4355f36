"""The convolution as torch has it: the reference, oneDNN or im2col on the CPU, cuDNN on a GPU."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from . import _args

# --- reference: plain PyTorch, every dtype ---------------------------------------------------


def reference(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        out += residual
    return out.relu_() if relu else out


# --- CPU: oneDNN, torch -----------------------------------------------------------------------


@functools.cache
def _onednn_missing(dtype: torch.dtype) -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return f"torch {torch.__version__} has no mkldnn::_convolution_pointwise"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 convolution on this processor"
    if dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return "oneDNN has no float16 convolution on this processor"
    return None


def cpu_why_not(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    if x.device.type != "cpu":
        return f"the input is on {x.device}"
    if x.dtype not in _args.KERNEL_DTYPES:
        return f"oneDNN has no convolution for {x.dtype}"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn.enabled is False"
    return _onednn_missing(x.dtype)


# Multiply-adds up to which torch's own im2col and matrix product are faster: oneDNN takes 35 µs
# before it begins, they 3. On 2 cores 0.9 million are level, and at 2.4 million oneDNN is ahead.
SMALL = 1_000_000


def _is_small(x, weight, nhwc: bool, dilation, groups) -> bool:
    pixels = x.numel() // x.shape[1]
    plain = x.dtype == torch.float32 and not nhwc and groups == 1 and list(dilation) == [1, 1]
    return plain and pixels * weight.numel() <= SMALL


def adds(x, residual, groups) -> bool:
    """Whether torch's binding of oneDNN adds a residual of this kind: it refuses some 1x1 maps in
    channels_last (torch 2.11), and in NCHW or with groups knows float32 only."""
    if residual.shape[2:].numel() == 1:
        return False
    nhwc = _args.memory_format(x) == torch.channels_last
    return x.dtype == torch.float32 or (nhwc and groups == 1)


def cpu(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    nhwc = _args.memory_format(x) == torch.channels_last
    if not nhwc:
        weight = weight.contiguous()  # channels_last weights would turn the output so
    geometry = (padding, stride, dilation, groups)
    if _is_small(x, weight, nhwc, dilation, groups):
        out = torch._C._nn.thnn_conv2d(x, weight, weight.shape[2:], bias, stride, padding)
    elif residual is not None and adds(x, residual, groups):
        fused = torch.ops.mkldnn._convolution_pointwise.binary
        out = fused(x, residual, weight, bias, *geometry, "add", 1.0, None, [], "")
        residual = None
    else:
        out = torch.mkldnn_convolution(x, weight, bias, *geometry)
    if residual is not None:
        out += residual
    # The ReLU is not fused: oneDNN's turns NaN into 0 (and fused it saves at most 5 % of a layer).
    return out.relu_() if relu else out


# --- cuDNN -----------------------------------------------------------------------------------


def cudnn_why_not(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    if x.device.type != "cuda":
        return f"the input is on {x.device}"
    if not torch.backends.cudnn.is_available() or not torch.backends.cudnn.enabled:
        return "cuDNN is not available or torch.backends.cudnn.enabled is False"
    if x.dtype not in _args.KERNEL_DTYPES:
        return f"cuDNN's fused convolution takes no {x.dtype}"
    if relu and groups != 1:
        return "cuDNN's fused convolution is used with groups=1 only: not verified with more"
    return None


def cudnn(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    # cuDNN turns its output channels_last when either operand is.
    weight = _args.in_format_of(weight, x)
    if relu and residual is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    if relu:
        return torch.cudnn_convolution_add_relu(
            x, weight, residual, 1.0, bias, stride, padding, dilation, groups
        )
    # torch binds cuDNN's fused convolution with ReLU only.
    flags = torch.backends.cudnn
    out = torch.cudnn_convolution(
        x, weight, padding, stride, dilation, groups,
        flags.benchmark, flags.deterministic, flags.allow_tf32,
    )  # fmt: skip
    if bias is not None:
        out += bias.view(1, -1, 1, 1)
    if residual is not None:
        out += residual
    return out
