"""The end of a residual block with a projection shortcut (He et al. 2015, option B): both
convolutions' terms in one sum, relu(W h + W' x + b), where a kernel does that."""

from __future__ import annotations

import torch

from ... import _lib
from ..net import Net, arguments, aten, only_user, ours, shape
from .conv import geometry_of, takes
from .lrn import RELUS
from .residual import is_sum

NAME, LEAF = "projection", "_conv2d_projection_cuda"
KIND = "conv + projection + ReLU"


def run(net: Net) -> None:
    for add in net.calls(aten.add.Tensor):
        relu = only_user(add)
        if relu is None or relu.target not in RELUS or not is_sum(add):
            continue
        found = _branches(net, add)
        if found is None:
            continue
        reason = _why_not(net, add)
        main, shortcut = found
        if reason is not None:
            layers = " + ".join((*main.meta["layers"], *shortcut.meta["layers"]))
            net.report.left.append((layers, f"{KIND}: {reason}"))
            continue
        stride, padding, dilation, _ = geometry_of(main)
        bias = _bias(net, main, shortcut)
        args = (
            main.args[0], main.args[1], shortcut.args[0], shortcut.args[1], bias,
            stride, padding, dilation, geometry_of(shortcut)[0],
        )  # fmt: skip
        first, second = sorted(found, key=list(net.graph.nodes).index)
        node = net.replace(
            [first, second, add, relu], ours.conv2d_projection_add_relu.default, args, KIND
        )
        node.meta["prefer"] = "cuda"


def _why_not(net: Net, add) -> str | None:
    if net.device.type != "cuda":
        return f"no {net.device.type} kernel sums two convolutions"
    if NAME not in net.optional:
        return f"not timed on a GPU yet; passes=[{NAME!r}] turns it on"
    if add.meta["val"].dtype == torch.float64:
        return "no kernel in float64"
    return None if _lib.has_leaf(LEAF) else f"this build has no {LEAF}"


def _branches(net: Net, add):
    """(main convolution, 1x1 projection) of a sum, None where it is another."""
    a, b = add.args[:2]
    if a is b or not all(takes(net, n) and only_user(n) is add for n in (a, b)):
        return None
    if any(geometry_of(n)[3] != 1 or not _constant_bias(net, n) for n in (a, b)):
        return None
    # Of two 1x1 the shortcut is the one with a stride, else the one computed last, as torchvision's.
    pointwise = [n for n in (b, a) if _is_projection(n)]
    pointwise.sort(key=lambda n: geometry_of(n)[0] == [1, 1])
    if not pointwise:
        return None
    return (a, b) if pointwise[0] is b else (b, a)


def _is_projection(conv) -> bool:
    return shape(conv.args[1])[2:] == (1, 1) and geometry_of(conv)[1] == [0, 0]


def _constant_bias(net: Net, conv) -> bool:
    bias = arguments(conv)[2]
    return bias is None or net.constant(bias) is not None


def _bias(net: Net, main, shortcut):
    """The sum of both biases: a weight where both are, else None or the one there is."""
    nodes = [n for n in (arguments(main)[2], arguments(shortcut)[2]) if n is not None]
    if len(nodes) < 2:
        return nodes[0] if nodes else None
    values = [net.constant(n) for n in nodes]
    return net.add_constant(values[0].double() + values[1].double(), main.meta["val"].dtype, main)
