"""NHWC convolution with tensor descriptors (TMA on sm_90 and later): groups 1, channels by 16 bytes.

out = relu?(x * w + bias + residual). A tile is a box of BOX_N x BOX_H x BOX_W output pixels by BN
channels; for each filter tap the same box of x, shifted, is one load: what falls outside the image
comes back as zeros and is the padding. Programs walk the tiles in steps of their number, channel
tiles fastest (neighbours share pixels). Stride 2 reads a 5-D view [N, H/2, 2, W/2, 2C] in which a
tap's rows and columns of one parity lie side by side. A 1x1 convolution is the image [1, 1, M, C].
With SWAP the product is channels x pixels: a box with several sizes above 1 reaches the tensor
cores from shared memory only as their second operand (as the first it goes through registers).
With POOL the output is 2x2/2 max-pooled: P and Q are even and so are a box's height and width, so no
window straddles two tiles, and rounding, bias and ReLU after the maximum give what they give before.
With SLICES above 1 (few tiles, long sums) each slice of a tile's sum is a tile of its own, stored in
float32; conv2d_slices_kernel adds them up in a fixed order and does the rest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def conv2d_descriptor_kernel(
    x,  # descriptor [N, H, W, C], or the 5-D view with BY_TWO
    w,  # descriptor [R * S, K, C]
    res,  # descriptor [N, P, Q, K]
    out,  # descriptor [N, P, Q, K]; POOL: [N, P / 2, Q / 2, K]; SLICES: [SLICES * N', P, Q, K]
    bias_ptr,  # [K]
    N, P, Q, K,
    C: tl.constexpr, R: tl.constexpr, S: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DIL_H: tl.constexpr, DIL_W: tl.constexpr, BY_TWO: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RES: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SPLIT: tl.constexpr, SWAP: tl.constexpr, FLATTEN: tl.constexpr,
    POOL: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = BOX_N * BOX_H * BOX_W
    OUT_H: tl.constexpr = BOX_H // 2 if POOL else BOX_H
    OUT_W: tl.constexpr = BOX_W // 2 if POOL else BOX_W
    CHUNKS: tl.constexpr = (C + BK - 1) // BK
    tiles_k, tiles_q, tiles_p = tl.cdiv(K, BN), tl.cdiv(Q, BOX_W), tl.cdiv(P, BOX_H)
    STEPS: tl.constexpr = R * S * CHUNKS
    SHARE: tl.constexpr = (STEPS + SLICES - 1) // SLICES
    tiles_n = tl.cdiv(N, BOX_N)
    tiles = tiles_k * tiles_q * tiles_p * tiles_n * SLICES
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        k0, rest = tile % tiles_k * BN, tile // tiles_k
        q0, rest = rest % tiles_q * BOX_W, rest // tiles_q
        p0, n0 = rest % tiles_p * BOX_H, rest // tiles_p * BOX_N
        first, last, n_out = 0, STEPS, n0
        if SLICES > 1:
            first, n0 = n0 // (tiles_n * BOX_N) * SHARE, n0 % (tiles_n * BOX_N)
            last = tl.minimum(first + SHARE, STEPS)

        # Sum over taps and channels.
        acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
        for step in range(first, last):
            c, tap = step % CHUNKS * BK, step // CHUNKS
            dy, dx = tap // S * DIL_H - PAD_H, tap % S * DIL_W - PAD_W
            if BY_TWO:
                a = x.load([n0, p0 + (dy >> 1), dy & 1, q0 + (dx >> 1), (dx & 1) * C + c])
            else:
                a = x.load([n0, p0 + dy, q0 + dx, c])
            a, b = tl.reshape(a, (BM, BK)), tl.reshape(w.load([tap, k0, c]), (BN, BK))
            if SWAP:
                acc = tl.dot(b, a.T, acc, input_precision=PRECISION)
            else:
                acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
        if POOL:  # in the accumulator's registers where BOX_W is 8 or more
            tl.static_assert(SWAP and not HAS_RES)
            windows = tl.reshape(acc, (BN, BOX_N * OUT_H, 2, OUT_W, 2))
            acc = tl.reshape(max_of_windows(windows), (BN, BM // 4))
            p0, q0 = p0 // 2, q0 // 2
        if SWAP:
            acc = acc.T

        # Epilogue, in halves where a whole tile's staging would not fit in shared memory.
        if SPLIT == 2:
            halves = tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            _finish(left, res, out, bias_ptr, n_out, p0, q0, k0, K,
                    HAS_BIAS, HAS_RES, RELU, BOX_N, OUT_H, OUT_W, BN // 2)  # fmt: skip
            _finish(right, res, out, bias_ptr, n_out, p0, q0, k0 + BN // 2, K,
                    HAS_BIAS, HAS_RES, RELU, BOX_N, OUT_H, OUT_W, BN // 2)  # fmt: skip
        else:
            _finish(acc, res, out, bias_ptr, n_out, p0, q0, k0, K,
                    HAS_BIAS, HAS_RES, RELU, BOX_N, OUT_H, OUT_W, BN)  # fmt: skip


@triton.jit
def conv2d_slices_kernel(
    part_ptr,  # [SLICES, N', P, Q, K] float32
    bias_ptr,  # [K]
    res_ptr,  # [N, K, P, Q]
    out_ptr,  # [N, K, P, Q], may be a channel slice
    numel, slice_numel, K, P, Q, rn, rk, rp, rq, on, ok, op, oq,  # strides
    HAS_BIAS: tl.constexpr, HAS_RES: tl.constexpr, RELU: tl.constexpr, SLICES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numel
    k, m = i % K, i // K
    q, p, n = m % Q, m // Q % P, m // Q // P
    acc = tl.zeros((BLOCK,), tl.float32)
    for s in tl.static_range(SLICES):
        acc += tl.load(part_ptr + s * slice_numel + i, mask=inside, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if HAS_RES:
        r = tl.load(res_ptr + n * rn + k * rk + p * rp + q * rq, mask=inside, other=0.0)
        acc += r.to(tl.float32)
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)  # NaN passes, as in torch.relu
    out = out_ptr + n * on + k * ok + p * op + q * oq
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def max_of_windows(acc):
    """[A, B, 2, C, 2] -> [A, B, C]: the maximum over both 2s; a NaN wins, as in torch."""
    left, right = tl.split(acc)
    acc = tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)
    top, bottom = tl.split(tl.permute(acc, (0, 1, 3, 2)))
    return tl.maximum(top, bottom, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _finish(
    acc, res, out, bias_ptr, n0, p0, q0, k0, K,
    HAS_BIAS: tl.constexpr, HAS_RES: tl.constexpr, RELU: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Bias, residual, ReLU and store of a [pixels, BN] tile."""
    if HAS_BIAS:
        k = k0 + tl.arange(0, BN)
        acc += tl.load(bias_ptr + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    if HAS_RES:
        r = tl.reshape(res.load([n0, p0, q0, k0]), (BOX_N * BOX_H * BOX_W, BN))
        acc += r.to(tl.float32)
    if RELU:
        acc = tl.where(acc <= 0, 0.0, acc)  # NaN passes, as in torch.relu
    acc = tl.reshape(acc.to(out.dtype), (BOX_N, BOX_H, BOX_W, BN))
    out.store([n0, p0, q0, k0], acc)


def nhwc(t: torch.Tensor) -> tuple[list[int], list[int]]:
    """(shape, strides) of [N, C, H, W] as [N, H, W, C]; sizes of 1 get the strides of dense memory."""
    shape, strides = [], []
    for d in (1, 3, 2, 0):
        dense = strides[0] * shape[0] if shape else 1
        strides.insert(0, dense if t.shape[d] == 1 else t.stride(d))
        shape.insert(0, t.shape[d])
    return shape, strides


def descriptor_why_not(*tensors: torch.Tensor) -> str | None:
    """Why one of these NHWC tensors [N, C, H, W] can't have a descriptor, or None."""
    for t in tensors:
        strides = nhwc(t)[1]
        sixteen = 16 // t.element_size()
        if strides[3] != 1 or t.data_ptr() % 16 or any(s % sixteen for s in strides[:3]):
            return f"a tensor of strides {list(t.stride())} is not NHWC aligned to 16 bytes"
    return None


def _as_matrix(shape: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """[N, H, W, C] whose pixels are evenly spaced as the image [1, 1, N * H * W, C]."""
    n, h, w, c = shape
    pixel = strides[2]
    if strides[:2] != [h * w * pixel, w * pixel]:
        raise ValueError(f"pixels of strides {strides} and shape {shape} are not evenly spaced")
    return [1, 1, n * h * w, c], [n * h * w * pixel, n * h * w * pixel, pixel, 1]


def _by_two(shape: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """[N, H, W, C] with even H and W as [N, H/2, 2, W/2, 2C]."""
    (n, h, w, c), (sn, sh, sw, _) = shape, strides
    return [n, h // 2, 2, w // 2, 2 * c], [sn, 2 * sh, sh, 2 * sw, 1]


def conv2d_descriptor(
    x: tuple[torch.Tensor, list[int], list[int]],  # base, [N, H, W, C], strides
    weight: torch.Tensor,  # K, R, S, C contiguous in this order
    bias: torch.Tensor | None,  # [K]
    residual: torch.Tensor | None,  # [N, K, P, Q] in NHWC memory
    out: torch.Tensor,  # [N, K, P, Q] in NHWC memory, may be a channel slice
    taps: tuple[int, int],  # R, S
    stride: int,  # 1, or 2 for even H and W
    padding: tuple[int, int],
    dilation: tuple[int, int],
    relu: bool,
    *,
    precision: str,
    config: dict,  # box, block_n, block_k, split, slices, programs, flatten, num_warps, num_stages
    matrix: bool = False,  # 1x1 on evenly spaced pixels: tiles run across rows and images
    pool: bool = False,  # ``out`` is [N, K, P // 2, Q // 2]: 2x2/2 maxima; not with matrix
) -> None:
    """Write relu?(conv2d(x, weight) + bias + residual), or its 2x2/2 max-pool, to ``out``."""
    base, *x_view = x
    out_view = nhwc(out)
    res = out if residual is None else residual
    res_view = nhwc(res)
    channels = x_view[0][3]
    if matrix:
        x_view, out_view, res_view = (_as_matrix(*view) for view in (x_view, out_view, res_view))
    n, p, q, k = out_view[0]
    if pool:
        p, q = 2 * p, 2 * q  # an odd last row or column is in no window
    box, block_n, block_k = list(config["box"]), config["block_n"], config["block_k"]
    split = config["split"]
    x_box = [*box, block_k]
    if stride == 2:
        x_view, x_box = _by_two(*x_view), [box[0], box[1], 1, box[2], block_k]
    slices = config.get("slices", 1)
    operands = bias, residual, out
    if slices > 1:  # the sums go to float32 memory first; boxes of two slices must not meet there
        images = triton.cdiv(n, box[0]) * box[0]
        out = torch.empty((slices * images, p, q, k), dtype=torch.float32, device=out.device)
        out_view = res_view = nhwc(out.permute(0, 3, 1, 2))
        res, bias, residual = out, None, None
    halved = 2 if pool else 1
    out_box = [box[0], box[1] // halved, box[2] // halved, block_n // split]
    tiles, taps_n = triton.cdiv(k, block_n) * slices, taps[0] * taps[1]
    for size, step in zip((n, p, q), box):
        tiles *= triton.cdiv(size, step)
    conv2d_descriptor_kernel[(min(tiles, config["programs"] or tiles),)](
        TensorDescriptor(base, *x_view, x_box),
        TensorDescriptor(
            weight, [taps_n, k, channels], [channels, taps_n * channels, 1], [1, block_n, block_k]
        ),
        TensorDescriptor(res, *res_view, out_box),
        TensorDescriptor(out, *out_view, out_box),
        weight if bias is None else bias,
        n, p, q, k,
        C=channels, R=taps[0], S=taps[1], PAD_H=padding[0], PAD_W=padding[1],
        DIL_H=dilation[0], DIL_W=dilation[1], BY_TWO=stride == 2,
        HAS_BIAS=bias is not None, HAS_RES=residual is not None, RELU=relu and slices == 1,
        PRECISION=precision, BOX_N=box[0], BOX_H=box[1], BOX_W=box[2], BN=block_n, BK=block_k,
        SPLIT=split, SLICES=slices,
        SWAP=not matrix, FLATTEN=config["flatten"], POOL=pool,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    if slices > 1:
        _add_slices(out, *operands, slices, relu)


def _add_slices(parts, bias, residual, out, slices: int, relu: bool, block: int = 512) -> None:
    res = out if residual is None else residual
    numel = out.numel()
    conv2d_slices_kernel[(triton.cdiv(numel, block),)](
        parts, out if bias is None else bias, res, out, numel, parts.numel() // slices,
        out.shape[1], *out.shape[2:], *res.stride(), *out.stride(),
        HAS_BIAS=bias is not None, HAS_RES=residual is not None, RELU=relu, SLICES=slices,
        BLOCK=block,
    )  # fmt: skip
