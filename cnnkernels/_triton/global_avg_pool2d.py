"""Mean over H and W. One program per block of channels (NHWC: of one image; NCHW: of all N * C
planes), which walks the pixels and keeps fp32 sums: no atomics, so bit-equal on repetition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def global_avg_pool2d_kernel(
    x_ptr,  # [IMAGES, PIXELS, ROWS] seen through the three strides
    out_ptr,  # [IMAGES, ROWS]
    rows, pixels, image_stride, row_stride, pixel_stride,
    ROWS_FAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    x_ptr += image * image_stride
    if ROWS_FAST:
        total = tl.zeros((BLOCK_P, BLOCK_R), tl.float32)
    else:
        total = tl.zeros((BLOCK_R, BLOCK_P), tl.float32)
    for start in range(0, pixels, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        if ROWS_FAST:
            offsets = p[:, None] * pixel_stride + r[None, :].to(tl.int64) * row_stride
            valid = (p[:, None] < pixels) & (r[None, :] < rows)
        else:
            offsets = r[:, None].to(tl.int64) * row_stride + p[None, :] * pixel_stride
            valid = (r[:, None] < rows) & (p[None, :] < pixels)
        total += tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0 if ROWS_FAST else 1) / pixels
    tl.store(out_ptr + image * rows + r, mean.to(out_ptr.dtype.element_ty), mask=r < rows)


def global_avg_pool2d(x: torch.Tensor) -> torch.Tensor:
    """x [N, C, H, W], contiguous or channels_last → [N, C, 1, 1]; sums in fp32."""
    n, c, h, w = x.shape
    nhwc = not x.is_contiguous()
    out = torch.empty((n, c, 1, 1), dtype=x.dtype, device=x.device)
    if out.numel():
        images, rows = (n, c) if nhwc else (1, n * c)
        block_r, block_p = (64, 16) if nhwc else (4, 256)
        global_avg_pool2d_kernel[(triton.cdiv(rows, block_r), images)](
            x, out, rows, h * w,
            c * h * w if nhwc else 0, 1 if nhwc else h * w, c if nhwc else 1,
            ROWS_FAST=nhwc, BLOCK_R=block_r, BLOCK_P=block_p,
        )  # fmt: skip
    return out
