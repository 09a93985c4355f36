"""What weight sharing saves: parameters of the same layer unshared, and dense."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from .layers import conv_output


@dataclass(frozen=True)
class Sharing:
    """Weights (without biases) of one connection pattern under three rules."""

    shared: int  # a convolution: one set for all positions
    unshared: int  # locally connected: every position has its own
    dense: int  # every output sees every input


def sharing(conv: nn.Conv2d, input_size: tuple[int, int, int]) -> Sharing:
    """Count for a convolution on one picture of ``input_size`` (channels, height, width)."""
    if input_size[0] != conv.in_channels:
        raise ValueError(
            f"input_size is {input_size!r}; the layer takes {conv.in_channels} channels"
        )
    out = conv_output(conv, input_size)
    shared = conv.weight.numel()
    return Sharing(shared, shared * math.prod(out[-2:]), math.prod(input_size) * math.prod(out))
