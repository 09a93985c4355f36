"""The convolution's Triton launches: config["kind"] names the kernel, the rest is its tile.

"pointer": conv2d_pointer.py, takes everything. "matrix" (1x1, stride 1), "taps" (stride 1, 1x1 with
any stride, stride 2 on even images): conv2d_descriptor.py. "stem" (few channels): conv2d_stem.py.
No policy here: cnnkernels.tuning.space makes the configs.
"""

from __future__ import annotations

import torch

from .conv2d_descriptor import conv2d_descriptor, descriptor_why_not, nhwc
from .conv2d_pointer import conv2d_pointer
from .conv2d_stem import conv2d_stem

__all__ = ["conv2d", "descriptor_why_not"]


def conv2d(
    x: torch.Tensor,  # [N, C, H, W], dense
    weight: torch.Tensor,  # [K, C / groups, R, S]
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,  # [N, K, P, Q]
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    relu: bool,
    *,
    config: dict,
    precision: str,  # of float32 products: "ieee" or "tf32"
    out: torch.Tensor | None = None,  # [N, K, P, Q], may be a channel slice
    pool: bool = False,  # 2x2/2 max-pool at the end, odd edges dropped; not with a residual
) -> torch.Tensor:
    """relu?(conv2d(x, weight) + bias + residual), in x's memory format (or written to ``out``).

    ``out`` may lie anywhere for "pointer"; descriptors want NHWC aligned to 16 bytes
    (:func:`descriptor_why_not`).
    """
    channels_last = not x.is_contiguous()
    stride, padding, dilation = list(stride), list(padding), list(dilation)
    r, s = weight.shape[2:]
    if out is None:
        sizes = [
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1)
            // stride[i]
            + 1
            for i in range(2)
        ]
        sizes = [size // 2 for size in sizes] if pool else sizes
        out = torch.empty(
            (x.shape[0], weight.shape[0], *sizes), dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )  # fmt: skip
    kind = config["kind"]
    tile = {"precision": precision, "config": config, "pool": pool}
    if kind == "stem":
        conv2d_stem(x, weight, bias, residual, out, stride, padding, relu, **tile)
        return out
    if channels_last:  # the reduction reads channels side by side; no copy when they are so already
        weight = weight.contiguous(memory_format=torch.channels_last)
    if kind == "pointer":
        conv2d_pointer(
            x, weight, bias, residual, out, stride, padding, dilation, groups, relu, **tile
        )
        return out
    if r == s == 1 and stride != [1, 1]:  # the image seen with its strides multiplied
        x, stride = x[:, :, :: stride[0], :: stride[1]], [1, 1]
    conv2d_descriptor(
        (x, *nhwc(x)), weight, bias, residual, out, (r, s), stride[0], padding, dilation, relu,
        matrix=kind == "matrix", **tile,
    )  # fmt: skip
    return out
