"""What one layer does: its steps with their output size, operations, and window.

A fused layer of :mod:`cnnkernels.nn` counts as the layers it stands for. Operations are counted for
the whole batch. One MAC is a multiplication and the addition of its product; FLOPs are twice the
MACs of a layer with weights (its bias is not counted, as in torch.utils.flop_counter), and the
additions, multiplications and powers of the others; comparisons (ReLU, max-pooling) are not FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import nn

from .. import nn as fused
from ..models.lenet import RBF
from .receptive_field import Field, Pair


def pair(value) -> Pair:
    """An int or a pair as a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class Step:
    """One layer of a table; a fused module gives several."""

    kind: str
    shape: torch.Size  # of the output, with the batch
    macs: int = 0
    flops: int = 0
    weight: int = 0
    bias: int = 0
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    whole: bool = False  # sees the whole map
    weighted: bool = False  # counts in depth
    fused: bool = False  # a fused kernel keeps this output on the chip

    def field(self, before: Field, shape: torch.Size) -> Field:
        """The field behind this step, given the field and shape of its input."""
        after = before.over(tuple(shape[-2:])) if self.whole else before
        after = after.through(self.kernel, self.stride, self.dilation)
        return after.deeper() if self.weighted else after


def _counts(module: nn.Module) -> dict[str, int]:
    own = dict(module.named_parameters(recurse=False))
    bias = own.pop("bias", None)
    return {
        "weight": sum(p.numel() for p in own.values()),
        "bias": 0 if bias is None else bias.numel(),
    }


@singledispatch
def steps(module: nn.Module, shape: torch.Size, out: torch.Size) -> list[Step] | None:
    """The steps of a module on an input of ``shape`` with an output of ``out``.

    None where the module isn't known: then its inside is looked at. [] for one that changes neither
    size nor memory (ReLU in place, dropout).
    """
    return None


for _type in (nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity, nn.Tanh, nn.Sigmoid, nn.Hardtanh):
    steps.register(_type)(lambda module, shape, out: [])


def _conv(module: nn.Conv2d, shape: torch.Size, out: torch.Size, fused: bool = False) -> Step:
    # By the number of weights, so that a table of connections (LeNet's C3) is counted as it is.
    positions = math.prod(out) // out[-3]
    macs = positions * module.weight.numel()
    return Step(
        "Conv2d", out, macs, 2 * macs, **_counts(module), kernel=pair(module.kernel_size),
        stride=pair(module.stride), dilation=pair(module.dilation), weighted=True, fused=fused,
    )  # fmt: skip


def _max_pool(kernel, stride, dilation, out: torch.Size) -> Step:
    return Step(
        "MaxPool2d",
        out,
        kernel=pair(kernel),
        stride=pair(stride or kernel),
        dilation=pair(dilation),
    )


def _lrn(module: nn.LocalResponseNorm, shape: torch.Size, fused: bool = False) -> Step:
    # squares and their window sum, scale, + k, power, multiply
    flops = (2 * module.size + 3) * math.prod(shape)
    return Step("LocalResponseNorm", shape, 0, flops, fused=fused)


def conv_output(module: nn.Conv2d, shape: torch.Size) -> torch.Size:
    """Output shape of a convolution by the rule floor((side + 2·pad − d·(k − 1) − 1) / stride) + 1."""
    if module.padding == "same":
        padding = [d * (k - 1) / 2 for k, d in zip(module.kernel_size, module.dilation)]
    else:
        padding = (0, 0) if module.padding == "valid" else module.padding
    sides = (
        int(side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, p, d, k, s in zip(
            shape[-2:], padding, module.dilation, module.kernel_size, module.stride
        )
    )
    return torch.Size((*shape[:-3], module.out_channels, *sides))


@steps.register
def _(module: nn.Conv2d, shape, out):
    return [_conv(module, shape, out)]


@steps.register
def _(module: fused.Conv2dReLUMaxPool2d, shape, out):
    pool = _max_pool(module.pool_kernel_size, module.pool_stride, module.pool_dilation, out)
    return [_conv(module, shape, conv_output(module, shape), fused=True), pool]


@steps.register
def _(module: nn.Linear, shape, out):
    macs = math.prod(out) * module.in_features
    return [Step("Linear", out, macs, 2 * macs, **_counts(module), weighted=True)]


@steps.register
def _(module: nn.MaxPool2d, shape, out):
    return [_max_pool(module.kernel_size, module.stride, module.dilation, out)]


@steps.register
def _(module: nn.AvgPool2d, shape, out):
    kernel = pair(module.kernel_size)
    flops = math.prod(out) * math.prod(kernel)
    counts = _counts(module)  # LeNet's sub-sampling has a coefficient and a bias per map
    if counts["weight"]:
        flops += 2 * math.prod(out)
    return [Step("AvgPool2d", out, 0, flops, **counts, kernel=kernel, stride=pair(module.stride))]


@steps.register
def _(module: nn.AdaptiveAvgPool2d, shape, out):
    if tuple(shape) == tuple(out):
        return []
    if tuple(out[-2:]) == (1, 1):
        return [Step("GlobalAvgPool2d", out, 0, math.prod(shape), whole=True)]
    # Windows differ by one pixel: the largest counts.
    kernel = tuple(-(-a // b) + (a % b != 0) for a, b in zip(shape[-2:], out[-2:]))
    stride = tuple(max(1, a // b) for a, b in zip(shape[-2:], out[-2:]))
    flops = math.prod(out) * math.prod(kernel)
    return [Step("AdaptiveAvgPool2d", out, 0, flops, kernel=kernel, stride=stride)]


@steps.register
def _(module: nn.LocalResponseNorm, shape, out):
    return [_lrn(module, shape)]


@steps.register
def _(module: fused.ReLULRNMaxPool2d, shape, out):
    pool = _max_pool(module.kernel_size, module.stride, module.dilation, out)
    return [_lrn(module, shape, fused=True), pool]


@steps.register
def _(module: nn.BatchNorm2d, shape, out):
    # Its running statistics make it a scale and a shift per element.
    return [Step("BatchNorm2d", out, 0, 2 * math.prod(out), **_counts(module))]


@steps.register
def _(module: fused.AddReLU, shape, out):
    return [Step("AddReLU", out, 0, math.prod(out))]


@steps.register
def _(module: RBF, shape, out):
    macs = math.prod(shape) * module.codes.shape[0]  # a difference, squared and added up
    return [Step("RBF", out, macs, 3 * macs, weighted=True)]
