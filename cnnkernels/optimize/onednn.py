"""oneDNN's convolution on weights in its own blocked layout, so that no call lays them out again."""

from __future__ import annotations

import torch

from .net import ours

_WITH_RESIDUAL = (ours.conv2d_add.default, ours.conv2d_add_relu.default)
_WITH_RELU = (ours.conv2d_relu.default, ours.conv2d_add_relu.default)


def packed(cache: dict, node, args: tuple):
    """The node's convolution with its weight packed, taking the op's arguments; None where torch
    has no such function for them."""
    residual = node.target in _WITH_RESIDUAL
    if residual:
        x, weight, _z, _bias, stride, padding, dilation, groups = args
    elif len(args) == 7:
        x, weight, _bias, stride, padding, dilation, groups = args
    else:
        return None
    if x.shape[0] == 0 or node.args[1].op != "get_attr":
        return None
    if residual and x.dtype != torch.float32 and groups != 1:
        return None
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return None
    if node.args[1] not in cache:
        cache[node.args[1]] = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, stride, dilation, groups, x.shape
        )
    weight = cache[node.args[1]]
    relu = node.target in _WITH_RELU
    convolve = torch.ops.mkldnn._convolution_pointwise.default
    binary = torch.ops.mkldnn._convolution_pointwise.binary

    # oneDNN's own ReLU turns NaN into 0, so it is not used.
    if not residual:

        def plain(x, _weight, bias, stride, padding, dilation, groups):
            return convolve(x, weight, bias, padding, stride, dilation, groups, "none", [], "")

    else:

        def plain(x, _weight, z, bias, stride, padding, dilation, groups):
            return binary(
                x, z, weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], ""
            )

    if not relu:
        return plain

    def run(*args):
        return plain(*args).relu_()

    run.before_relu = plain
    return run
