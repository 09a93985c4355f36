"""Pooling windows: arguments, output sizes, and the one-byte positions kept for the backward pass.

A window's position is kh * KW + kw, counted from the corner of the unclipped window (padding
included, dilation not multiplied in). MARKER stands for "no gradient".
"""

from __future__ import annotations

import torch

from . import _args

ARGUMENTS = (
    "int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, "
    "bool ceil_mode=False"
)


def offset_dtype(kernel) -> torch.dtype:
    """uint8 while every position and the marker fit in it."""
    return torch.uint8 if kernel[0] * kernel[1] <= 255 else torch.int32


def marker(dtype: torch.dtype) -> int:
    """The position that stands for "no gradient"."""
    return 255 if dtype == torch.uint8 else -1


def output_size(size, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool):
    """Windows along one dimension; with ceil_mode the last one starts inside the input or its left
    padding."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + stride - 1 if ceil_mode else span) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


def arguments(kernel_size, stride, padding, dilation, prefix: str = "") -> tuple[list[int], ...]:
    """kernel, stride, padding, dilation as checked pairs; stride defaults to the kernel. ``prefix`` is
    that of the arguments' names."""
    kernel = _args.pair(kernel_size, f"{prefix}kernel_size", 1)
    default = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    stride = list(kernel) if default else _args.pair(stride, f"{prefix}stride", 1)
    padding = _args.pair(padding, f"{prefix}padding", 0)
    dilation = _args.pair(dilation, f"{prefix}dilation", 1)
    if any(pad > size // 2 for pad, size in zip(padding, kernel)):
        raise ValueError(
            f"{prefix}padding is {padding}; it must be at most half of {prefix}kernel_size {kernel},"
            " rounded down"
        )
    return kernel, stride, padding, dilation


def out_shape(
    shape, kernel, stride, padding, dilation, ceil_mode: bool, prefix: str = "", name: str = "input"
) -> list:
    """[N, C, OH, OW] of an input [N, C, H, W]; ValueError when a window doesn't fit. ``prefix`` is that
    of the arguments' names, ``name`` the pooled tensor's."""
    *outer, h, w = shape
    if any(size == 0 for size in (shape[-3], h, w)):
        raise ValueError(f"{name} has shape {list(shape)}; channels, height and width can't be 0")
    out = [
        output_size(size, *geometry, ceil_mode)
        for size, geometry in zip((h, w), zip(kernel, stride, padding, dilation))
    ]
    if any(size < 1 for size in out):
        raise ValueError(
            f"{name} has shape {list(shape)}; the output would be {out[0]}x{out[1]}: {prefix}kernel_size"
            f" {kernel} with {prefix}dilation {dilation} is larger than that padded by {padding}"
        )
    return [*outer, *out]


def _grid(offsets, input_size, kernel, stride, padding, dilation):
    """Row and column of each output's position in its plane, and which of them are real.

    offsets [N, C, OH, OW] -> rows, columns int64 [N, C, OH, OW], valid bool.
    """
    oh, ow = offsets.shape[-2:]
    position = offsets.long()
    valid = position != marker(offsets.dtype)
    top = torch.arange(oh, device=offsets.device) * stride[0] - padding[0]
    left = torch.arange(ow, device=offsets.device) * stride[1] - padding[1]
    rows = top[:, None] + position // kernel[1] * dilation[0]
    columns = left + position % kernel[1] * dilation[1]
    return rows, columns, valid


def flat_indices(offsets, input_size, kernel, stride, padding, dilation):
    """torch's int64 indices h * W + w of each output, -1 at markers."""
    rows, columns, valid = _grid(offsets, input_size, kernel, stride, padding, dilation)
    return torch.where(valid, rows * input_size[-1] + columns, -1)


def gather(values, offsets, kernel, stride, padding, dilation):
    """values [N, C, H, W] at each output's position, 0 at markers: the adjoint of the backward."""
    indices = flat_indices(offsets, values.shape, kernel, stride, padding, dilation).flatten(2)
    picked = values.flatten(2).gather(2, indices.clamp(min=0))
    return picked.masked_fill(indices < 0, 0).view(offsets.shape)


def scatter(grad, offsets, input_size, kernel, stride, padding, dilation):
    """The backward pass in plain torch: each output's gradient added at its position. Sums in fp32
    (fp64 for fp64) and does not round: the caller does."""
    indices = flat_indices(offsets, input_size, kernel, stride, padding, dilation).flatten(2)
    wide = grad.dtype if grad.dtype == torch.float64 else torch.float32
    grad = grad.flatten(2).to(wide).masked_fill(indices < 0, 0)
    n, c, h, w = input_size
    zeros = torch.zeros(n, c, h * w, dtype=wide, device=grad.device)
    return zeros.scatter_add(2, indices.clamp(min=0), grad).view(n, c, h, w)


def max_with_offsets(x, kernel, stride, padding, dilation, ceil_mode: bool, relu: bool):
    """Values and positions of each window's maximum, in plain torch. x [N, C, H, W]."""
    # Contiguous: torch's CUDA kernel for channels_last gives index -1 to a window of -inf alone.
    out, indices = torch.nn.functional.max_pool2d(
        x.contiguous(), kernel, stride, padding, dilation, ceil_mode, return_indices=True
    )
    oh, ow = out.shape[-2:]
    h, w = x.shape[-2:]
    axes = []
    for size, outs, k, s, p, d in zip((h, w), (oh, ow), kernel, stride, padding, dilation):
        start = torch.arange(outs, device=x.device) * s - p
        # The first tap inside; a window whose dilated taps all miss the input has none.
        first = torch.where(start < 0, (-start + d - 1) // d, 0)
        axes.append((start, (first < k) & (start + first * d < size)))
    (top, any_row), (left, any_column) = axes
    rows = (indices // w - top[:, None]) // dilation[0]
    columns = (indices % w - left) // dilation[1]
    dtype = offset_dtype(kernel)
    offsets = rows * kernel[1] + columns
    dead = ~(any_row[:, None] & any_column).expand_as(offsets)
    if relu:
        out = torch.relu(out)
        dead = dead | (out <= 0)
    return out, offsets.masked_fill(dead, marker(dtype)).to(dtype)
