"""The seam of two residual bottlenecks: a block's 1x1 expansion with sum and ReLU and the next block's
1x1 reduction with ReLU in one kernel, where one does both. The block's output, which the next block
adds again, stays a result."""

from __future__ import annotations

import operator

import torch

from ...ops import conv2d_pair
from ..net import Net, arguments, ours, shape

NAME = "pair"
KIND = "conv + add + ReLU + next conv + ReLU"


def run(net: Net) -> None:
    for first in net.calls(ours.conv2d_add_relu.default):
        second = next((n for n in first.users if _reduces(net, n, first)), None)
        if second is None or not _pointwise(first):
            continue
        reason = _why_not(net, first, second)
        if reason is None:
            _join(net, first, second)
        else:
            layers = " + ".join((*first.meta["layers"], *second.meta["layers"]))
            net.report.left.append((layers, f"{KIND}: {reason}"))


def _pointwise(conv) -> bool:
    """1x1, stride 1, no padding, one group."""
    stride, padding, _, groups = arguments(conv)[-4:]
    kernel = shape(arguments(conv)[1])[2:]
    return (kernel, stride, padding, groups) == ((1, 1), [1, 1], [0, 0], 1)


def _reduces(net: Net, node, first) -> bool:
    """Whether the node is a 1x1 convolution with ReLU of ``first``'s result, its weights known."""
    if node.target != ours.conv2d_relu.default or node.args[0] is not first:
        return False
    weights = [t for t in arguments(node)[1:3] if t is not None]
    return _pointwise(node) and all(net.constant(t) is not None for t in weights)


def _why_not(net: Net, first, second) -> str | None:
    if net.device.type != "cuda":
        return f"no {net.device.type} kernel computes both"
    if NAME not in net.optional:
        return f"not timed in a network yet; passes=[{NAME!r}] turns it on"
    value = first.meta["val"]
    if value.dtype == torch.float64:
        return "no kernel in float64"
    sizes = shape(first.args[0])[1], shape(first)[1], shape(second)[1]
    return conv2d_pair.channels_why_not(*sizes, value.element_size())


def _join(net: Net, first, second) -> None:
    x, weight, residual, bias, *_ = arguments(first)
    next_weight, next_bias = arguments(second)[1:3]
    for node in (next_weight, next_bias):
        if node is not None and first < node:
            first.prepend(node)
    with net.graph.inserting_before(first):
        both = net.graph.call_function(
            ours.conv2d_add_relu_conv2d_relu.default,
            (x, weight, residual, next_weight, bias, next_bias),
        )
        parts = [net.graph.call_function(operator.getitem, (both, i)) for i in range(2)]
    convs = (first, second)
    rewrites = [r for c in convs for r in c.meta["rewrites"][:-1]]
    both.meta = {
        "val": tuple(c.meta["val"] for c in convs),
        "origin": None,
        "layers": tuple(dict.fromkeys(name for c in convs for name in c.meta["layers"])),
        "rewrites": (*dict.fromkeys(rewrites), KIND),
    }
    for part, conv in zip(parts, convs):
        part.meta = {**conv.meta, "rewrites": (), "part": True}
        conv.replace_all_uses_with(part)
    for conv in reversed(convs):
        net.graph.erase_node(conv)
