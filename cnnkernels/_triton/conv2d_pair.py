"""Two 1x1 convolutions back to back, as at the seam of two ResNet bottlenecks, in one kernel:

    y = relu(x * w1 + b1 + residual)        expand, [M, C] -> [M, K1]
    z = relu(y * w2 + b2)                   reduce, [M, K1] -> [M, K2]

A program owns BM pixels: it keeps their x in shared memory and z in registers, and walks over K1 in
chunks of BN. A chunk of y is stored and at once multiplied into z, so y is never read back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def conv2d_pair_kernel(
    x,  # descriptor [M, C]
    w1,  # descriptor [K1, C]
    res,  # descriptor [M, K1]
    w2,  # descriptor [K2, K1]
    y,  # descriptor [M, K1]
    z,  # descriptor [M, K2]
    b1_ptr,  # [K1]
    b2_ptr,  # [K2]
    M,
    K1: tl.constexpr, K2: tl.constexpr, HAS_B1: tl.constexpr, HAS_B2: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    m0 = tl.program_id(0) * BM
    a = x.load([m0, 0])
    acc = tl.zeros((BM, K2), tl.float32)
    for k0 in range(0, K1, BN):
        # One chunk of the expansion, its residual and ReLU (NaN passes, as in torch.relu). A sum
        # written as such becomes the product's accumulator, whose loads Triton does not issue ahead:
        # every chunk then waits for its residual.
        r = res.load([m0, k0]).to(tl.float32)
        if PREFETCH and HAS_B1:
            r += tl.load(b1_ptr + k0 + tl.arange(0, BN)).to(tl.float32)[None, :]
        chunk = tl.dot(a, w1.load([k0, 0]).T, input_precision=PRECISION)
        chunk = tl.fma(chunk, 1.0, r) if PREFETCH else chunk + r
        if HAS_B1 and not PREFETCH:
            chunk += tl.load(b1_ptr + k0 + tl.arange(0, BN)).to(tl.float32)[None, :]
        chunk = tl.where(chunk <= 0, 0.0, chunk).to(y.dtype)
        y.store([m0, k0], chunk)
        # Its part of the reduction, from what was stored: rounded as a separate op would read it.
        acc = tl.dot(chunk, w2.load([0, k0]).T, acc, input_precision=PRECISION)
    if HAS_B2:
        acc += tl.load(b2_ptr + tl.arange(0, K2)).to(tl.float32)[None, :]
    acc = tl.where(acc <= 0, 0.0, acc)
    z.store([m0, 0], acc.to(z.dtype))


def pair_why_not(c: int, k1: int, k2: int) -> str | None:
    """Why these channel counts don't fit the kernel, or None."""
    for name, value, most in (("C", c, 512), ("K2", k2, 512)):
        if value & (value - 1) or not 16 <= value <= most:
            return f"{name} is {value}; the fused pair takes powers of two from 16 to {most}"
    if k1 % 64:
        return f"K1 is {k1}; the fused pair takes multiples of 64"
    return None


def conv2d_pair(
    x: torch.Tensor,  # [M, C]
    weight: torch.Tensor,  # [K1, C]
    bias: torch.Tensor | None,
    residual: torch.Tensor,  # [M, K1]
    next_weight: torch.Tensor,  # [K2, K1]
    next_bias: torch.Tensor | None,
    *,
    precision: str,
    config: dict,  # block_m, block_n, prefetch, num_warps, num_stages
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y [M, K1], z [M, K2]); all operands contiguous and aligned to 16 bytes."""
    (m, c), (k1, _), (k2, _) = x.shape, weight.shape, next_weight.shape
    y, z = x.new_empty(m, k1), x.new_empty(m, k2)
    block_m, block_n = config["block_m"], config["block_n"]

    def described(t: torch.Tensor, *block: int) -> TensorDescriptor:
        return TensorDescriptor(t, list(t.shape), [t.shape[1], 1], list(block))

    conv2d_pair_kernel[(triton.cdiv(m, block_m),)](
        described(x, block_m, c), described(weight, block_n, c),
        described(residual, block_m, block_n), described(next_weight, k2, block_n),
        described(y, block_m, block_n), described(z, block_m, k2),
        weight if bias is None else bias, weight if next_bias is None else next_bias, m,
        K1=k1, K2=k2, HAS_B1=bias is not None, HAS_B2=next_bias is not None, PRECISION=precision,
        BM=block_m, BN=block_n, PREFETCH=config["prefetch"],
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return y, z
