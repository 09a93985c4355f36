"""The first convolution of a 16-bit plan reads float32 images as they are: no cast or change of layout
in front of it where a stem kernel takes them, and both in the operation where none does (GPU)."""

from __future__ import annotations

import torch

from ...ops.conv2d_image import window_of
from ..net import Net, arguments, is_image, only_user, ours, pair

KIND = "image read as it is"
_CONVOLUTIONS = (
    ours.conv2d.default, ours.conv2d_relu.default, ours.conv2d_relu_max_pool2d.default
)  # fmt: skip


def run(net: Net) -> None:
    if not _wanted(net):
        return
    for conv in net.calls(*_CONVOLUTIONS):
        x, weight, bias, stride, padding, dilation, groups, *pool = arguments(conv)
        if x.op != "placeholder" or only_user(x) is not conv or not is_image(x):
            continue
        value = x.meta["val"]
        if value.dtype not in (torch.float16, torch.bfloat16) or value.shape[1] != 3:
            continue
        if x.meta.get("given") != torch.float32:  # the example's own
            continue
        window = window_of(pool)
        if window is None or groups != 1 or pair(dilation) != [1, 1]:
            continue
        relu = conv.target != ours.conv2d.default
        args = (x, weight, bias, pair(stride), pair(padding), relu, window)
        kinds = conv.meta.get("rewrites", ())
        node = net.replace([conv], ours.conv2d_image.default, args, KIND)
        node.meta["rewrites"] = (*kinds, KIND)
        x.meta["image"] = True


def _wanted(net: Net) -> bool:
    return net.device.type == "cuda"  # oneDNN would cast in every call
