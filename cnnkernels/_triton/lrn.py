"""Local response normalisation across channels, with or without a ReLU first.

y = x / (k + alpha/size * sum of squares over `size` channels)^beta. One program per BLOCK elements
in memory order; the window is read again from the cache, a channel stride apart. fp32 tensors are
summed and raised to the power in fp64: in fp32 log2, exp2 and the sum were off by up to 3 ulp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def lrn_kernel(
    x_ptr,  # dense [N, C, H, W] in any order
    bias_ptr,  # [C]
    out_ptr,  # x's geometry
    numel, C, channel_stride, scale, beta, k,
    SIZE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr,
    SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    c = (i // channel_stride) % C
    x = tl.load(x_ptr + i, mask=inside).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + c, mask=inside).to(tl.float32)
    if RELU:
        x = tl.where(x <= 0, 0.0, x)
    total = tl.zeros((BLOCK,), SUM)
    for j in tl.static_range(SIZE):
        d = j - SIZE // 2
        valid = inside & (c + d >= 0) & (c + d < C)
        v = tl.load(x_ptr + i + d * channel_stride, mask=valid, other=0.0).to(tl.float32)
        if BIAS:
            v += tl.load(bias_ptr + c + d, mask=valid, other=0.0).to(tl.float32)
        if RELU:
            v = tl.where(v <= 0, 0.0, v)
        total += v.to(SUM) * v.to(SUM)
    power = tl.exp2(-beta * tl.log2(k + scale * total))
    power = tl.where(beta == 0.0, 1.0, power)  # 0 * log2(0) is NaN, 0^0 is 1
    tl.store(out_ptr + i, (x * power).to(out_ptr.dtype.element_ty), mask=inside)


def local_response_norm(
    x: torch.Tensor,  # [N, C, H, W], contiguous or channels_last
    bias: torch.Tensor | None,  # [C], added to x first
    size: int,
    alpha: float,
    beta: float,
    k: float,
    relu: bool,
    *,
    block: int = 1024,
    num_warps: int = 4,
) -> torch.Tensor:
    """x's geometry and dtype; sums and powers in fp32, for fp32 in fp64."""
    out = torch.empty_like(x)
    numel = x.numel()
    if numel:
        stride = x.stride(1) if x.shape[1] > 1 else 1
        lrn_kernel[(triton.cdiv(numel, block),)](
            x, x if bias is None else bias, out, numel, x.shape[1], stride,
            alpha / size, float(beta), float(k), SIZE=size, BIAS=bias is not None, RELU=relu,
            WIDE=numel >= 2**31 - block, SUM=tl.float64 if x.dtype == torch.float32 else tl.float32,
            BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
    return out
