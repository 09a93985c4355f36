"""The convolution's Triton launches: config["kind"] names the kernel, the rest is its tile.

"pointer": conv2d_pointer.py, everything. No policy here: cnnkernels.tuning.space makes configs.
"""

from __future__ import annotations

import torch

from .conv2d_pointer import conv2d_pointer


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
) -> torch.Tensor:
    """relu?(conv2d(x, weight) + bias + residual), in x's memory format (or written to ``out``)."""
    nhwc = not x.is_contiguous()
    if nhwc:  # the reduction reads channels side by side; no copy when they are so already
        weight = weight.contiguous(memory_format=torch.channels_last)
    if out is None:
        sizes = [
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1)
            // stride[i]
            + 1
            for i in range(2)
        ]
        out = torch.empty(
            (x.shape[0], weight.shape[0], *sizes), dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last if nhwc else torch.contiguous_format,
        )  # fmt: skip
    conv2d_pointer(
        x, weight, bias, residual, out, stride, padding, dilation, groups, relu,
        precision=precision, config=config,
    )  # fmt: skip
    return out
