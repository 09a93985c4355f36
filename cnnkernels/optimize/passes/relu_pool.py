"""ReLU → max-pool in one pass, where no convolution takes the ReLU along.

On CPU a convolution's ReLU is a pass of its own over memory, so the pool is the better place.
"""

from __future__ import annotations

from ...ops._conv2d import output_shape
from ..net import Net, arguments, aten, is_image, only_user, ours, pair
from .conv import takes
from .lrn import RELUS
from .pool import window


def run(net: Net) -> None:
    if net.device.type == "cpu":
        _split(net)
    for pool in net.calls(aten.max_pool2d.default, ours.max_pool2d.default):
        relu = pool.args[0]
        if not is_image(relu) or relu.target not in RELUS or only_user(relu) is not pool:
            continue
        source = relu.args[0]
        if net.device.type != "cpu" and takes(net, source) and only_user(source) is relu:
            continue
        args = (source, *window(pool))
        net.replace([relu, pool], ours.relu_max_pool2d.default, args, "ReLU + max-pool")


def _split(net: Net) -> None:
    """The layers that are convolution and ReLU, or these and a max-pool, as their parts."""
    for call in net.calls(ours.conv2d_relu_max_pool2d.default):
        x, weight, bias, *geometry = arguments(call)
        geometry, (kernel, *pool, ceil_mode) = geometry[:4], geometry[4:]
        conv = _before(call, ours.conv2d.default, (x, weight, bias, *geometry))
        value, pairs = x.meta["val"], map(pair, geometry[:3])
        conv.meta["val"] = value.new_empty(output_shape(value, weight.meta["val"], *pairs))
        stride, padding, dilation = pair(pool[0], pair(kernel)), pair(pool[1]), pair(pool[2])
        args = (conv, pair(kernel), stride, padding, dilation, ceil_mode)
        net.replace([conv, call], ours.relu_max_pool2d.default, args, "ReLU + max-pool")
    for pool in net.calls(aten.max_pool2d.default, ours.max_pool2d.default):
        call = pool.args[0]
        if call.target == ours.conv2d_relu.default and only_user(call) is pool and is_image(call):
            conv = _before(call, ours.conv2d.default, call.args)
            args = (conv, *window(pool))
            net.replace([conv, call, pool], ours.relu_max_pool2d.default, args, "ReLU + max-pool")


def _before(node, target, args: tuple):
    """A new call before ``node``, of the same layer; its value is not one of the captured graph's."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args)
    new.meta = {**node.meta, "origin": None}
    return new
