"""Activations that PyTorch computes write over their input where nothing else reads it: the memory
that eager's ``inplace=True`` saves."""

from __future__ import annotations

import torch

from ..net import Net, aten, same, shape
from .normalize import _aliases_input

_TWINS = {
    getattr(aten, name).default: getattr(aten, f"{name}_").default
    for name in ("relu", "hardtanh", "silu", "hardswish", "hardsigmoid", "sigmoid", "leaky_relu",
                 "elu", "gelu", "mish")
    if hasattr(aten, f"{name}_")
}  # fmt: skip


def run(net: Net) -> None:
    for node in net.calls(*_TWINS):
        x = node.args[0]
        if x.op != "call_function" or len(x.users) > 1 or _aliases_input(x):
            continue
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or not same(shape(x), shape(node)):
            continue
        if x.meta["val"].dtype == value.dtype:
            node.target = _TWINS[node.target]
