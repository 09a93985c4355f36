"""Sums at the end of residual blocks: conv + add (+ ReLU), and add + ReLU where no convolution ends there."""

from __future__ import annotations

from ..net import Net, arguments, aten, is_image, only_user, ours, same, shape
from .conv import geometry_of, takes
from .lrn import RELUS


def run(net: Net) -> None:
    for add in net.calls(aten.add.Tensor, ours.add_relu.default):
        a, b = arguments(add)[:2]
        if not is_sum(add):
            continue
        relu = add if add.target == ours.add_relu.default else only_user(add)
        with_relu = relu is not None and relu.target in (*RELUS, ours.add_relu.default)
        tail = [add] if relu is add or not with_relu else [add, relu]
        conv = _last_convolution(net, add, a, b)
        if conv is not None:
            x, weight, bias, *_ = arguments(conv)
            residual = b if conv is a else a
            target = ours.conv2d_add_relu if with_relu else ours.conv2d_add
            net.replace(
                [conv, *tail], target.default, (x, weight, residual, bias, *geometry_of(conv)),
                "conv + add + ReLU" if with_relu else "conv + add",
            )  # fmt: skip
        elif with_relu and relu is not add:
            net.replace([add, relu], ours.add_relu.default, (a, b), "add + ReLU")


def is_sum(add) -> bool:
    """a + b of two images of one shape and dtype: nothing is scaled, broadcast or promoted."""
    a, b, *alpha = arguments(add)
    return (
        (not alpha or alpha[0] == 1)
        and is_image(a)
        and is_image(b)
        and same(shape(a), shape(b))
        and a.meta["val"].dtype == b.meta["val"].dtype
    )


def _last_convolution(net: Net, add, a, b):
    """The convolution that takes the sum along: the one computed last, but of two one without a
    stride, whose result a pair can go on from."""
    order = list(net.graph.nodes)
    convs = [n for n in (a, b) if a is not b and takes(net, n) and only_user(n) is add]
    return max(convs, key=lambda n: (geometry_of(n)[0] == [1, 1], order.index(n)), default=None)
