"""Max-pooling, inference form: one program per BLOCK outputs in memory order, any layout.

Neighbouring windows overlap; the second read of an element comes from the cache. Values only: the
training form with indices is compiled CUDA.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def max_pool2d_kernel(
    x_ptr,  # [N, C, H, W], strides sn sc sh sw
    out_ptr,  # [N, C, P, Q], dense in NHWC or NCHW order
    numel, C, H, W, P, Q, sn, sc, sh, sw,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    NHWC: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    if NHWC:
        c, rest = i % C, i // C
        q, rest = rest % Q, rest // Q
        p, n = rest % P, rest // P
    else:
        q, rest = i % Q, i // Q
        p, rest = rest % P, rest // P
        c, n = rest % C, rest // C
    base = x_ptr + n.to(tl.int64) * sn + c.to(tl.int64) * sc
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    for r in tl.static_range(R):
        h = p * STRIDE_H - PAD_H + r * DIL_H
        for s in tl.static_range(S):
            w = q * STRIDE_W - PAD_W + s * DIL_W
            valid = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            v = tl.load(base + h * sh + w * sw, mask=valid, other=float("-inf")).to(tl.float32)
            if RELU:
                v = tl.where(valid & (v <= 0), 0.0, v)
            best = tl.where((v > best) | (v != v), v, best)  # a NaN wins, as in torch
    tl.store(out_ptr + i, best.to(out_ptr.dtype.element_ty), mask=inside)


def max_pool2d(
    x: torch.Tensor,  # [N, C, H, W], contiguous or channels_last
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    relu: bool,
    *,
    block: int = 1024,
    num_warps: int = 8,
) -> torch.Tensor:
    """[N, C, P, Q] in x's memory format; relu applies it to the input first."""
    nhwc = not x.is_contiguous()
    sizes = []
    for i in range(2):
        size, span = x.shape[2 + i], dilation[i] * (kernel[i] - 1)
        out = size + 2 * padding[i] - span - 1
        out = (out + (stride[i] - 1 if ceil_mode else 0)) // stride[i] + 1
        # A window must start inside the input or its left padding.
        sizes.append(out - (ceil_mode and (out - 1) * stride[i] >= size + padding[i]))
    n, c, h, w = x.shape
    out = torch.empty(
        (n, c, *sizes), dtype=x.dtype, device=x.device,
        memory_format=torch.channels_last if nhwc else torch.contiguous_format,
    )  # fmt: skip
    numel = out.numel()
    if numel:
        max_pool2d_kernel[(triton.cdiv(numel, block),)](
            x, out, numel, c, h, w, *sizes, *x.stride(),
            R=kernel[0], S=kernel[1], STRIDE_H=stride[0], STRIDE_W=stride[1],
            PAD_H=padding[0], PAD_W=padding[1], DIL_H=dilation[0], DIL_W=dilation[1],
            NHWC=nhwc, RELU=relu, WIDE=numel >= 2**31 - block, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
    return out
