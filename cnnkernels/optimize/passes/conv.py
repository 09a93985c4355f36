"""Every 2-D convolution, with its bias and the ReLU after it, on this package's operations."""

from __future__ import annotations

from ..net import Net, arguments, aten, is_image, only_user, ours, pair, shape
from .lrn import RELUS

_CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, ours.conv2d.default)


def run(net: Net) -> None:
    for conv in net.calls(*_CONVOLUTIONS):
        if not takes(net, conv):
            continue
        x, weight, bias, *_ = arguments(conv)
        relu = only_user(conv)
        if relu is not None and relu.target in RELUS:
            args = (x, weight, bias, *geometry_of(conv))
            net.replace([conv, relu], ours.conv2d_relu.default, args, "conv + ReLU")
        elif conv.target != ours.conv2d.default:
            args = (x, weight, bias, *geometry_of(conv))
            net.replace([conv], ours.conv2d.default, args, "conv")


def takes(net: Net, conv) -> bool:
    """Whether the node is a convolution that this package's operations can compute."""
    return conv.target in _CONVOLUTIONS and why_not(net, conv) is None


def why_not(net: Net, conv) -> str | None:
    x, weight, bias, *_, groups = arguments(conv)
    if not is_image(x):
        return "the input has no batch dimension"
    tensors = [t.meta["val"] for t in (x, weight, bias) if t is not None]
    if any(t.dtype != tensors[0].dtype for t in tensors):
        return "input and weights differ in dtype"
    if geometry_of(conv) is None:
        return "padding='same' needs one row or column more on one side"
    if net.device.type == "cuda" and groups != 1:
        return "cuDNN's grouped convolution is the faster one"
    return None


def geometry_of(conv) -> tuple | None:
    """(stride, padding, dilation, groups) with pairs, None for padding that is not symmetric."""
    _, weight, _, stride, padding, dilation, groups = arguments(conv)
    stride, dilation = pair(stride), pair(dilation)
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, shape(weight)[2:])]
        if padding == "same" and any(t % 2 for t in total):
            return None
        padding = [0, 0] if padding == "valid" else [t // 2 for t in total]
    return stride, pair(padding), dilation, groups
