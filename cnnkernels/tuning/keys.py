"""Keys of the measured table, and the nearest measured shape to one that was not measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import torch

# N, C, H, W and K may differ from the measured shape by this factor in all (a sum of log2's).
FARTHEST = 2.0

# (op, dtype and layout), N, C, H, W, output channels of a convolution, all the rest
_SHAPE = re.compile(r"([^/]*/[^/]*/[^/]*/)(\d+)x(\d+)x(\d+)x(\d+)(?:-k(\d+))?((?:-.*)?)")


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


def op_key(op: str, names: Sequence[str], args: Sequence) -> str:
    """The key of any other op: its input's dtype, layout and sizes, then every further argument that
    is not None or False; ``names`` are the arguments'."""
    x = args[0]
    nhwc = x.dim() == 4 and not x.is_contiguous()
    nhwc = nhwc and x.is_contiguous(memory_format=torch.channels_last)
    dtype = str(x.dtype).removeprefix("torch.")
    if op.startswith("conv2d") and x.dtype == torch.float32 and x.device.type == "cuda":
        dtype = "tf32" if torch.backends.cudnn.allow_tf32 else dtype
    parts = [f"{op}/{dtype}/{'nhwc' if nhwc else 'nchw'}/{'x'.join(map(str, x.shape))}"]
    for name, a in zip(names[1:], args[1:]):
        if isinstance(a, torch.Tensor):
            a = "x".join(map(str, a.shape))
        elif isinstance(a, (list, tuple)):
            a = _pair(a) if len(a) == 2 else "x".join(map(str, a))
        if a is not None and a is not False:
            parts.append(name if a is True else f"{name}={a}")
    return "-".join(parts)


def nearest(key: str, table: Iterable[str]) -> str | None:
    """The key of ``table`` that differs from ``key`` only in N, C, H, W and a convolution's K, and
    least in them."""
    match = _SHAPE.fullmatch(key)
    if match is None:
        return None
    prefix, *sizes, rest = match.groups()
    wanted = [math.log2(int(size or 1) or 1) for size in sizes]
    best, least = None, FARTHEST
    for other in table:
        if not (other.startswith(prefix) and other.endswith(rest)):
            continue
        candidate = _SHAPE.fullmatch(other)
        if candidate is None or candidate[7] != rest:
            continue
        distance = 0.0
        for a, b in zip(wanted, candidate.groups()[1:6]):
            distance += abs(a - math.log2(int(b or 1) or 1))
        if distance <= least:
            best, least = other, distance
    return best
