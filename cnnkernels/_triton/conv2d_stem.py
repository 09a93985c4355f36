"""Convolutions of few channels (an RGB image): space-to-depth, then the descriptor kernel.

With stride s, s x s pixels become one of s * s * C channels (padded to CP, a multiple of 16 bytes),
which turns an R x S / s filter into ceil(R/s) x ceil(S/s) with stride 1. The filter's columns are
then folded into the channels: CP-channel pixels lie side by side, so a descriptor whose pixels
overlap reads S' * CP channels as one row. What is left is a column of R' taps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .conv2d_descriptor import conv2d_descriptor


@triton.jit
def stem_prepare_kernel(
    x_ptr,  # [N, C, H, W], any strides
    w_ptr,  # [K, C, R, S], any strides
    x_out_ptr,  # [N, HP, WP, CP]
    w_out_ptr,  # [K, R', S', CP]
    x_numel, w_numel, x_blocks, H, W, HP, WP,
    xn, xc, xh, xw, wk, wc, wr, ws,  # strides
    C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) < x_blocks:  # the image
        start = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
        i = start * BLOCK + tl.arange(0, BLOCK)
        part, rest = i % CP, i // CP
        wp, rest = rest % WP, rest // WP
        hp, n = rest % HP, rest // HP
        c, cell = part % C, part // C
        h = hp * STRIDE_H + cell // STRIDE_W - PAD_H
        w = wp * STRIDE_W + cell % STRIDE_W - PAD_W
        valid = (i < x_numel) & (cell < STRIDE_H * STRIDE_W)
        valid &= (h >= 0) & (h < H) & (w >= 0) & (w < W)
        v = tl.load(x_ptr + n.to(tl.int64) * xn + c * xc + h * xh + w * xw, mask=valid, other=0.0)
        tl.store(x_out_ptr + i, v, mask=i < x_numel)
    else:  # the weight
        S2: tl.constexpr = (S + STRIDE_W - 1) // STRIDE_W
        R2: tl.constexpr = (R + STRIDE_H - 1) // STRIDE_H
        i = (tl.program_id(0) - x_blocks) * BLOCK + tl.arange(0, BLOCK)
        part, rest = i % CP, i // CP
        s2, rest = rest % S2, rest // S2
        r2, k = rest % R2, rest // R2
        c, cell = part % C, part // C
        r = r2 * STRIDE_H + cell // STRIDE_W
        s = s2 * STRIDE_W + cell % STRIDE_W
        valid = (i < w_numel) & (cell < STRIDE_H * STRIDE_W) & (r < R) & (s < S)
        v = tl.load(w_ptr + k * wk + c * wc + r * wr + s * ws, mask=valid, other=0.0)
        tl.store(w_out_ptr + i, v, mask=i < w_numel)


def conv2d_stem(
    x: torch.Tensor,  # [N, C, H, W], any strides
    weight: torch.Tensor,  # [K, C, R, S], any strides
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,  # [N, K, P, Q] in NHWC memory
    stride: tuple[int, int],
    padding: tuple[int, int],
    relu: bool,
    *,
    precision: str,
    config: dict,  # as for conv2d_descriptor
    pool: bool = False,  # as for conv2d_descriptor
    block: int = 1024,
) -> None:
    """Write relu?(conv2d(x, weight) + bias + residual), or its 2x2/2 max-pool, to ``out``; dilation
    and groups are 1."""
    (n, c, h, w), (k, _, r, s), (p, q) = x.shape, weight.shape, out.shape[2:]
    if pool:
        p, q = 2 * p, 2 * q
    r2, s2 = triton.cdiv(r, stride[0]), triton.cdiv(s, stride[1])
    sixteen = 16 // x.element_size()
    cp = triton.cdiv(stride[0] * stride[1] * c, sixteen) * sixteen
    hp, wp = p + r2 - 1, q + s2 - 1
    cells = x.new_empty(n, hp, wp, cp)
    packed = x.new_empty(k, r2, s2 * cp)
    x_blocks = triton.cdiv(cells.numel(), block)
    stem_prepare_kernel[(x_blocks + triton.cdiv(packed.numel(), block),)](
        x, weight, cells, packed, cells.numel(), packed.numel(), x_blocks, h, w, hp, wp,
        *x.stride(), *weight.stride(),
        C=c, CP=cp, R=r, S=s, STRIDE_H=stride[0], STRIDE_W=stride[1],
        PAD_H=padding[0], PAD_W=padding[1],
        WIDE=cells.numel() >= 2**31 - block, BLOCK=block,
    )  # fmt: skip
    row = [n, hp, q, s2 * cp], [hp * wp * cp, wp * cp, cp, 1]  # overlapping pixels
    conv2d_descriptor(
        (cells, *row), packed, bias, residual, out, (r2, 1), 1, (0, 0), (1, 1), relu,
        precision=precision, config=config, pool=pool,
    )  # fmt: skip
