"""Convolution as implicit GEMM with computed addresses: any strides, dilation, groups and channels.

out = relu?(x * w + bias + residual). The grid is (pixel tiles x channel tiles, groups); a program
owns BM output pixels (of N * P * Q in that order) x BN output channels and sums over filter taps x
channels, BK at a time. With FLAT the taps and channels are one axis (few channels: stems). In NCHW
the tile is transposed (channels x pixels) so that neighbouring threads read neighbouring pixels.
With POOL the output is 2x2/2 max-pooled: the four pixels of a window follow one another in a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .conv2d_descriptor import max_of_windows


@triton.jit
def conv2d_pointer_kernel(
    x_ptr,  # [N, groups * CG, H, W]
    w_ptr,  # [groups * KG, CG, R, S]
    bias_ptr,  # [groups * KG]
    res_ptr,  # [N, groups * KG, P, Q]
    out_ptr,  # [N, groups * KG, P, Q], may be a channel slice
    N, H, W, P, Q, KG,
    xn, xc, xh, xw, wk, wc, wr, ws, rn, rk, rp, rq, on, ok, op, oq,  # strides
    CG: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RES: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    FLAT: tl.constexpr, NCHW: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr,
    POOL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # This program's pixels and channels. Channel tiles vary fastest: neighbours share their pixels.
    channel_tiles = tl.cdiv(KG, BN)
    group = tl.program_id(1)
    tile = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)  # all offsets follow
    m = tile // channel_tiles * BM + tl.arange(0, BM)
    k = tile % channel_tiles * BN + tl.arange(0, BN)
    n, p, q = _position(m // 4 if POOL else m, P, Q)
    m_ok, k_ok = n < N, k < KG
    k += group * KG
    if POOL:
        p, q = 2 * p + m // 2 % 2, 2 * q + m % 2
    h0, w0 = p * STRIDE_H - PAD_H, q * STRIDE_W - PAD_W
    x_base = n * xn + h0 * xh + w0 * xw + group * CG * xc
    if ALIGN > 1:
        x_base = tl.multiple_of(x_base, ALIGN)

    # Sum over taps and channels.
    acc = tl.zeros((BN, BM) if NCHW else (BM, BN), tl.float32)
    CHUNKS: tl.constexpr = (CG + BK - 1) // BK
    STEPS: tl.constexpr = (R * S * CG + BK - 1) // BK if FLAT else R * S * CHUNKS
    for step in range(STEPS):
        if FLAT:
            i = step * BK + tl.arange(0, BK)
            c, tap = i % CG, i // CG
            r, s = tap // S, tap % S
            c_ok = tap < R * S
        else:
            c = step % CHUNKS * BK + tl.arange(0, BK)
            tap = step // CHUNKS
            r, s = tap // S, tap % S
            c_ok = c < CG
        x_tap = r * (DIL_H * xh) + s * (DIL_W * xw) + c * xc
        w_tap = r * wr + s * ws + c * wc
        if NCHW:
            h = h0[None, :] + _column(r, FLAT) * DIL_H
            w = w0[None, :] + _column(s, FLAT) * DIL_W
            ok_x = m_ok[None, :] & c_ok[:, None] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            a = tl.load(x_ptr + x_base[None, :] + x_tap[:, None], mask=ok_x, other=0.0)
            b = tl.load(
                w_ptr + k[:, None] * wk + w_tap[None, :],
                mask=k_ok[:, None] & c_ok[None, :], other=0.0,
            )  # fmt: skip
            acc = tl.dot(b, a, acc, input_precision=PRECISION)
        else:
            h = h0[:, None] + _row(r, FLAT) * DIL_H
            w = w0[:, None] + _row(s, FLAT) * DIL_W
            ok_x = m_ok[:, None] & c_ok[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            a = tl.load(x_ptr + x_base[:, None] + x_tap[None, :], mask=ok_x, other=0.0)
            b = tl.load(
                w_ptr + k[None, :] * wk + w_tap[:, None],
                mask=k_ok[None, :] & c_ok[:, None], other=0.0,
            )  # fmt: skip
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    # Epilogue: maximum, bias, residual, ReLU, store.
    if POOL:
        tl.static_assert(not HAS_RES)
        if NCHW:
            acc = tl.reshape(max_of_windows(tl.reshape(acc, (BN, BM // 4, 2, 1, 2))), (BN, BM // 4))
        else:
            windows = tl.reshape(acc.T, (BN, BM // 4, 2, 1, 2))
            acc = tl.reshape(max_of_windows(windows), (BN, BM // 4)).T
        m = tile // channel_tiles * (BM // 4) + tl.arange(0, BM // 4)
        n, p, q = _position(m, P, Q)
        m_ok = n < N
    if NCHW:
        ok_out = k_ok[:, None] & m_ok[None, :]
        out = out_ptr + (n * on + p * op + q * oq)[None, :] + (k * ok)[:, None]
        res = res_ptr + (n * rn + p * rp + q * rq)[None, :] + (k * rk)[:, None]
        if HAS_BIAS:
            acc += tl.load(bias_ptr + k, mask=k_ok, other=0.0).to(tl.float32)[:, None]
    else:
        ok_out = m_ok[:, None] & k_ok[None, :]
        out = out_ptr + (n * on + p * op + q * oq)[:, None] + (k * ok)[None, :]
        res = res_ptr + (n * rn + p * rp + q * rq)[:, None] + (k * rk)[None, :]
        if HAS_BIAS:
            acc += tl.load(bias_ptr + k, mask=k_ok, other=0.0).to(tl.float32)[None, :]
    if HAS_RES:
        acc += tl.load(res, mask=ok_out, other=0.0).to(tl.float32)
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)  # NaN passes, as in torch.relu
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=ok_out)


@triton.jit
def _position(m, P, Q):
    """(image, row, column) of output pixel m."""
    q, rest = m % Q, m // Q
    p, n = rest % P, rest // P
    return n, p, q


@triton.jit
def _column(v, FLAT: tl.constexpr):
    """A tap index against [BK, BM]: a vector over BK when FLAT, else one number."""
    return v[:, None] if FLAT else v


@triton.jit
def _row(v, FLAT: tl.constexpr):
    return v[None, :] if FLAT else v


def conv2d_pointer(
    x: torch.Tensor,  # [N, C, H, W], any strides
    weight: torch.Tensor,  # [K, C / groups, R, S], any strides
    bias: torch.Tensor | None,  # [K]
    residual: torch.Tensor | None,  # [N, K, P, Q], any strides
    out: torch.Tensor,  # [N, K, P, Q], any strides: a channel slice of a larger tensor will do
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    relu: bool,
    *,
    precision: str,  # of float32 products: "ieee" or "tf32"
    config: dict,  # block_m, block_n, block_k, flat, num_warps, num_stages
    pool: bool = False,  # ``out`` is [N, K, P // 2, Q // 2]: 2x2/2 maxima; not with a residual
) -> None:
    """Write relu?(conv2d(x, weight) + bias + residual), or its 2x2/2 max-pool, to ``out``."""
    n, c, h, w = x.shape
    k, cg, r, s = weight.shape
    p, q = out.shape[2:]
    block_m, block_n, block_k = (config[f"block_{name}"] for name in "mnk")
    res = out if residual is None else residual
    tiles = triton.cdiv(n * p * q * (4 if pool else 1), block_m) * triton.cdiv(k // groups, block_n)
    reach = max(
        sum((size - 1) * st for size, st in zip(t.shape, t.stride())) for t in (x, out, res)
    )
    conv2d_pointer_kernel[(tiles, groups)](
        x, weight, weight if bias is None else bias, res, out,
        n, h, w, p, q, k // groups,
        *x.stride(), *weight.stride(), *res.stride(), *out.stride(),
        CG=cg, R=r, S=s, STRIDE_H=stride[0], STRIDE_W=stride[1],
        PAD_H=padding[0], PAD_W=padding[1], DIL_H=dilation[0], DIL_W=dilation[1],
        HAS_BIAS=bias is not None, HAS_RES=residual is not None, RELU=relu, PRECISION=precision,
        FLAT=config["flat"], NCHW=x.stride(1) != 1 and c > 1, WIDE=reach >= 2**31,
        ALIGN=_alignment(x, cg if groups > 1 else 0), POOL=pool, BM=block_m, BN=block_n, BK=block_k,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip


def _alignment(x: torch.Tensor, group_channels: int) -> int:
    """The largest of 8, 4, 2, 1 that divides every pixel's offset; lets 16-byte loads through."""
    values = [*x.stride()[2:], x.stride(0), group_channels * x.stride(1)]
    return next(a for a in (8, 4, 2, 1) if all(v % a == 0 for v in values))
