"""ReLU → max-pool in one pass, where no convolution takes the ReLU along.

On CPU a convolution's ReLU is a pass of its own over memory, so the pool is the better place.
"""

from __future__ import annotations

from ..net import Net, aten, is_image, only_user, ours
from .conv import takes
from .lrn import RELUS
from .pool import window


def run(net: Net) -> None:
    for pool in net.calls(aten.max_pool2d.default, ours.max_pool2d.default):
        relu = pool.args[0]
        if not is_image(relu) or relu.target not in RELUS or only_user(relu) is not pool:
            continue
        source = relu.args[0]
        if net.device.type != "cpu" and takes(net, source) and only_user(source) is relu:
            continue
        args = (source, *window(pool))
        net.replace([relu, pool], ours.relu_max_pool2d.default, args, "ReLU + max-pool")
