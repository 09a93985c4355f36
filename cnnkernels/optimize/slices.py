"""The implementations of a convolution that write into channels of a larger tensor."""

from __future__ import annotations

import torch

from ..ops import _conv2d
from .net import ours

RELU = {
    ours.conv2d.default: False, ours.conv2d_relu.default: True,
    ours.conv2d_add.default: False, ours.conv2d_add_relu.default: True,
}  # fmt: skip
_WITH_RESIDUAL = (ours.conv2d_add.default, ours.conv2d_add_relu.default)


def into(target, name: str, config: dict | None, args: tuple):
    """A function (buffer, start, *args) by which implementation ``name`` of the op ``target`` writes
    to ``buffer``'s channels from ``start`` on; None where it can't for arguments like ``args``."""
    if target not in RELU or name not in ("cuda", "triton"):
        return None
    x, weight, _, z, *geometry = _split(target, args)
    if name == "cuda" and _conv2d.stem.why_not(x, weight, z, *geometry) is None:
        return None
    relu = RELU[target]

    def triton(buffer, start, *args):
        x, weight, bias, z, *geometry = _split(target, args)
        out = buffer.narrow(1, start, weight.shape[0])
        _conv2d.triton_conv2d(x, weight, bias, z, *geometry, relu, config, out=out)

    def cuda(buffer, start, *args):
        x, weight, bias, z, *geometry = _split(target, args)
        instance = (config or {}).get("instance", "")
        torch.ops.cnnkernels._conv2d_cuda_out(
            _conv2d.readable(x), weight, bias, z, *geometry, relu, instance, buffer, start
        )

    return cuda if name == "cuda" else triton


def split(target, name: str, args: tuple):
    """A function (start, size, buffer, *args) by which implementation ``name`` of a convolution writes
    its first ``size`` channels to ``buffer``'s from ``start`` on and returns a tensor of the others;
    None where it can't for arguments like ``args``."""
    x, weight, _, z, *geometry = _split(target, args)
    if name != "cuda" or _conv2d.stem.why_not(x, weight, z, *geometry) is None:
        return None

    def run(start, size, buffer, *args):
        x, weight, bias, _, *geometry, _ = _split(target, args)
        rest = torch.empty(
            (buffer.shape[0], weight.shape[0] - size, *buffer.shape[2:]),
            dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
        )  # fmt: skip
        torch.ops.cnnkernels._conv2d_cuda_split(
            _conv2d.readable(x), weight, bias, *geometry, RELU[target], "", size,
            buffer, start, rest, 0,
        )  # fmt: skip
        return rest

    return run


def _split(target, args: tuple):
    """(x, weight, bias, residual, stride, padding, dilation, groups)."""
    if target in _WITH_RESIDUAL:
        x, weight, z, bias, *geometry = args
        return x, weight, bias, z, *geometry
    x, weight, bias, *geometry = args
    return x, weight, bias, None, *geometry
