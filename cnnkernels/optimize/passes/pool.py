"""Max-pool, with the convolution and ReLU before it where one kernel does all three; global average pool."""

from __future__ import annotations

from ..net import Net, arguments, aten, is_image, only_user, ours, pair


def run(net: Net) -> None:
    for pool in net.calls(aten.max_pool2d.default):
        if is_image(pool.args[0]):
            args = (pool.args[0], *window(pool))
            net.replace([pool], ours.max_pool2d.default, args, "max-pool")
    for pool in net.calls(ours.max_pool2d.default):
        conv = pool.args[0]
        if conv.target == ours.conv2d_relu.default and only_user(conv) is pool and _has_kernel():
            args = (*arguments(conv), *window(pool))
            net.replace(
                [conv, pool], ours.conv2d_relu_max_pool2d.default, args, "conv + ReLU + max-pool"
            )
    _global_average(net)


def _has_kernel() -> bool:
    """Whether conv2d_relu_max_pool2d is anything but its two parts one after the other."""
    from ...ops._op import OPS

    return len(OPS["conv2d_relu_max_pool2d"].impls) > 1


def window(pool) -> tuple:
    """(kernel, stride, padding, dilation, ceil_mode) with pairs."""
    _, kernel, stride, padding, dilation, ceil_mode = arguments(pool)
    kernel = pair(kernel)
    return kernel, pair(stride, kernel), pair(padding), pair(dilation), ceil_mode


def _global_average(net: Net) -> None:
    for node in net.calls(aten.adaptive_avg_pool2d.default):
        x, size = arguments(node)
        if is_image(x) and list(size) == [1, 1]:
            net.replace([node], ours.global_avg_pool2d.default, (x,), "global average pool")
    for node in net.calls(aten.mean.dim):
        x, dims, keepdim, dtype = arguments(node)
        if not is_image(x) or dtype is not None or sorted(d % 4 for d in dims or ()) != [2, 3]:
            continue
        if keepdim:
            net.replace([node], ours.global_avg_pool2d.default, (x,), "global average pool")
            continue
        with net.graph.inserting_before(node):
            mean = net.graph.call_function(ours.global_avg_pool2d.default, (x,))
        value = x.meta["val"]
        mean.meta = {**node.meta, "origin": None, "val": value[:, :, :1, :1]}
        net.replace([mean, node], aten.flatten.using_ints, (mean, 1), "global average pool")
