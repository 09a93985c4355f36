"""oneDNN's convolution and matrix product on weights in its own blocked layout, so that no call lays them
out again. A packed weight takes the plain one's place: it is a tensor of layout torch._mkldnn."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..ops._conv2d_vendor import adds
from .net import Net, aten, ours

LINEAR = aten.linear.default
_WITH_RESIDUAL = (ours.conv2d_add.default, ours.conv2d_add_relu.default)
_WITH_RELU = (ours.conv2d_relu.default, ours.conv2d_add_relu.default)
CONVOLUTIONS = (ours.conv2d.default, ours.conv2d_relu.default, *_WITH_RESIDUAL)
# Smaller matrices lie in the caches, where oneDNN's call costs more than it saves.
LINEAR_ELEMENTS = 2**18


def weights(net: Net) -> dict[str, list[str]]:
    """The weights that may be packed, as only convolutions and matrix products read them, as their
    weight: name → all names of that tensor."""
    if net.device.type != "cpu":
        return {}
    attrs = [n for n in net.graph.nodes if n.op == "get_attr"]

    def fits(attr) -> bool:
        return all(
            user.target in (LINEAR, *CONVOLUTIONS)
            and [i for i, a in enumerate(user.args) if a is attr] == [1]
            and not user.kwargs
            for user in attr.users
        )

    tensors: dict[int, list[str]] = {}
    for name in {n.target for n in attrs} - {n.target for n in attrs if not fits(n)}:
        tensors.setdefault(id(net.tensors[name]), []).append(name)
    return {name: names for names in tensors.values() for name in names}


def linear(x, weight) -> Callable | None:
    """The matrix product on a packed weight, or None where torch's own serves."""
    known = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if not known or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    bf16 = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not (x.dtype == torch.float32 or bf16):
        return None
    if weight.numel() < LINEAR_ELEMENTS or not x.numel():
        return None
    product = torch.ops.mkldnn._linear_pointwise.default

    def run(x, weight, bias=None):
        return product(x, weight, bias, "none", [], "")

    return run


def pack_linear(weight) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def convolution(target, args: tuple) -> Callable | None:
    """The convolution ``target`` on a packed weight; None where torch has no such function for
    arguments like these."""
    residual = target in _WITH_RESIDUAL
    x = args[0]
    if x.shape[0] == 0:
        return None
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return None
    convolve = torch.ops.mkldnn._convolution_pointwise.default
    binary = torch.ops.mkldnn._convolution_pointwise.binary

    # oneDNN's own ReLU turns NaN into 0, so it is not used.
    if not residual:

        def plain(x, weight, bias, stride, padding, dilation, groups):
            return convolve(x, weight, bias, padding, stride, dilation, groups, "none", [], "")

    elif not adds(x, args[2], args[-1]):

        def plain(x, weight, z, bias, stride, padding, dilation, groups):
            out = convolve(x, weight, bias, padding, stride, dilation, groups, "none", [], "")
            return out.add_(z)

    else:

        def plain(x, weight, z, bias, stride, padding, dilation, groups):
            return binary(
                x, z, weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], ""
            )

    if target not in _WITH_RELU:
        return plain

    def run(*args):
        return plain(*args).relu_()

    run.before_relu = plain
    return run


def pack_convolution(weight, args: tuple) -> torch.Tensor:
    x, (stride, padding, dilation, groups) = args[0], args[-4:]
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, dilation, groups, x.shape
    )
