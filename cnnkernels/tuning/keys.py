"""Keys of the measured table, and the nearest measured shape to one that was not measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import torch

# N, C, H, W and K may differ from the measured shape by this factor in all (a sum of log2's).
FARTHEST = 2.0

_SHAPE = re.compile(r"(.*/)(\d+)x(\d+)x(\d+)x(\d+)-k(\d+)(-.*)")


def _pair(value: Sequence[int]) -> str:
    a, b = value
    return str(a) if a == b else f"{a}x{b}"


def conv_key(
    dtype: torch.dtype,
    device_type: str,
    channels_last: bool,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    residual: bool = False,
    relu: bool = False,
) -> str:
    """The key of conv2d, conv2d_relu, conv2d_add and conv2d_add_relu; format in tuning's docstring."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float32 and device_type == "cuda" and torch.backends.cudnn.allow_tf32:
        name = "tf32"
    n, c, h, w = input_shape
    k, _, r, s = weight_shape
    return (
        f"conv2d/{name}/{'nhwc' if channels_last else 'nchw'}/{n}x{c}x{h}x{w}-k{k}-r{r}s{s}"
        f"-s{_pair(stride)}-p{_pair(padding)}-d{_pair(dilation)}-g{groups}"
        f"{'-add' * residual}{'-relu' * relu}"
    )


def nearest(key: str, table: Iterable[str]) -> str | None:
    """The key of ``table`` that differs from ``key`` only in N, C, H, W, K, and least in them."""
    match = _SHAPE.fullmatch(key)
    if match is None:
        return None
    prefix, *sizes, rest = match.groups()
    best, least = None, FARTHEST
    for other in table:
        candidate = _SHAPE.fullmatch(other) if other.startswith(prefix) else None
        if candidate is None or candidate.group(7) != rest:
            continue
        distance = sum(
            abs(math.log2(max(int(a), 1) / max(int(b), 1)))
            for a, b in zip(sizes, candidate.groups()[1:6])
        )
        if distance <= least:
            best, least = other, distance
    return best
