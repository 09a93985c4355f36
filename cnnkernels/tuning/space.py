"""What can be tuned: the Triton convolution's configs for a shape, best guess first."""

from __future__ import annotations

import math
from dataclasses import dataclass

SMEM_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}  # bytes a block may have


@dataclass(frozen=True)
class Conv:
    """A convolution's geometry as the config space sees it."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    nhwc: bool
    element_size: int
    residual: bool = False
    pool: bool = False  # 2x2/2 max-pool at the end

    @property
    def p(self) -> int:
        return _out(self.h, self.r, self.stride[0], self.padding[0], self.dilation[0])

    @property
    def q(self) -> int:
        return _out(self.w, self.s, self.stride[1], self.padding[1], self.dilation[1])

    @property
    def pixels(self) -> int:
        return self.n * self.p * self.q


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def power_of_two(value: int, low: int, high: int) -> int:
    """The smallest power of two that holds ``value``, within [low, high]."""
    return min(max(1 << max(value - 1, 0).bit_length(), low), high)


def pointer_configs(conv: Conv, capability: int = 80) -> list[dict]:
    """Tiles of the pointer kernel. FLAT where the channels of a group don't fill a chunk."""
    limit = SMEM_LIMIT.get(capability, SMEM_LIMIT[90])
    cg, kg = conv.c // conv.groups, conv.k // conv.groups
    flat = cg < 16
    reduction = cg * conv.r * conv.s if flat else cg
    # IEEE float32 products are multiply-adds in registers: large tiles take minutes to compile.
    wide = conv.element_size == 2
    block_k = power_of_two(reduction, 16, 64 if wide else 16)
    block_n = power_of_two(kg, 16, 128 if wide else 64)
    # Few pixels: smaller tiles, so that every multiprocessor gets one.
    many = wide and conv.pixels >= 128 * 64
    block_m = 128 if many else power_of_two(conv.pixels, 16, 64)
    tiles = [(block_m, block_n, 4)]
    if wide and conv.pixels >= 4096:
        tiles += [(256, block_n, 8), (128, block_n, 8), (64, block_n, 4)]
        if kg > 128 and not conv.residual:  # spills with one
            tiles += [(128, 256, 8)]
        if block_n > 64:
            tiles += [(128, 64, 4), (256, 64, 8)]
    if wide and (flat or not conv.nhwc):  # an address per element: larger tiles spill
        block_k, block_n = min(block_k, 32), min(block_n, 64)
        tiles = [(128, block_n, 8)] * (block_m > 64) + [(min(block_m, 64), block_n, 4)]
    configs = []
    for m, n, warps in tiles:
        for stages in (3, 4):
            step = (m + n) * block_k * conv.element_size
            if step * stages <= limit - 4096:
                configs.append(
                    {"kind": "pointer", "block_m": m, "block_n": n, "block_k": block_k,
                     "flat": flat, "num_warps": warps, "num_stages": stages}
                )  # fmt: skip
    return list({tuple(c.items()): c for c in configs}.values())


# (pixels, channels, warps, penalty) of the "matrix" kernel's tiles; the penalty is the time beside
# the estimate on an H100 (17 layers, bfloat16, batch 64).
MATRIX_TILES = [
    (128, 128, 4, 1.0), (256, 64, 8, 1.0), (128, 64, 4, 1.0), (64, 128, 4, 1.0), (64, 64, 4, 1.0),
    (128, 128, 8, 1.05), (64, 256, 4, 1.05), (128, 256, 8, 1.35), (256, 128, 8, 1.35),
    (64, 32, 4, 1.15), (128, 32, 4, 1.25), (64, 16, 4, 1.4), (128, 16, 4, 1.6),
]  # fmt: skip
PERSISTENT = 0.87  # the time of a persistent tile beside one program per tile, measured likewise
# The same of "taps" and "stem", whose product is channels x pixels: a warpgroup has 64 channels.
BOX_TILES = [
    (256, 128, 8, 1.0), (128, 256, 8, 1.0), (128, 128, 8, 1.0), (128, 128, 4, 1.0),
    (256, 64, 4, 1.0), (256, 64, 8, 1.0), (64, 256, 8, 1.0), (64, 128, 8, 1.0), (64, 128, 4, 1.0),
    (128, 64, 4, 1.0), (64, 64, 4, 1.0),
]  # fmt: skip


def boxes(
    n: int, p: int, q: int, pixels: int, even: bool = False
) -> list[tuple[float, tuple[int, int, int]]]:
    """Boxes of ``pixels`` output pixels as (share of useful pixels, [n, p, q]), best first; of
    equals the widest, then the highest. ``even``: in height and width, for 2x2 windows."""
    found = []
    for bw in _powers(pixels):
        for bh in _powers(pixels // bw):
            if even and 1 in (bw, bh):
                continue
            bn = pixels // bw // bh
            covered = _round_up(n, bn) * _round_up(p, bh) * _round_up(q, bw)
            found.append((n * p * q / covered, (bn, bh, bw)))
    return sorted(found, key=lambda item: (-item[0], -item[1][2], -item[1][1]))


def _powers(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if limit % (1 << i) == 0]


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def descriptor_kind(conv: Conv, tf32: bool = False) -> str | None:
    """Which descriptor kernel takes this convolution: "matrix", "taps", "stem" or None."""
    sixteen = 16 // conv.element_size
    if not conv.nhwc or conv.groups != 1 or conv.k % sixteen:
        return None
    if conv.element_size != 2 and not tf32:
        return None  # IEEE float32 has no tensor cores
    if conv.c < sixteen:
        return "stem" if conv.dilation == (1, 1) and max(conv.stride) <= 4 else None
    if conv.c % sixteen:
        return None
    if conv.r == conv.s == 1 and conv.padding == (0, 0):
        return "matrix" if conv.stride == (1, 1) and not conv.pool else "taps"
    if conv.stride == (1, 1):
        return "taps"
    # A partial chunk of the 5-D view would read the neighbouring pixel's channels.
    even = conv.h % 2 == conv.w % 2 == 0 and conv.c % 16 == 0
    return "taps" if conv.stride == (2, 2) and even else None


def _reduction(conv: Conv, kind: str) -> tuple[int, int]:
    """(taps, channels) of the descriptor kernel's sum."""
    if kind != "stem":
        return conv.r * conv.s, conv.c
    sixteen = 16 // conv.element_size
    cell = _round_up(conv.stride[0] * conv.stride[1] * conv.c, sixteen)
    return -(-conv.r // conv.stride[0]), -(-conv.s // conv.stride[1]) * cell


def _shared(conv: Conv, tile: dict, stages: int) -> int:
    pixels = math.prod(tile["box"])
    stage = (pixels + tile["block_n"]) * tile["block_k"] * conv.element_size
    if tile.get("slices", 1) > 1:  # float32 sums, no residual
        return stages * stage + pixels * tile["block_n"] * 4 // tile["split"] + 2048
    staging = pixels * tile["block_n"] * conv.element_size // tile["split"]
    if conv.pool:  # windows in boxes narrower than 8 pixels change threads: half a tile in float32
        staging = staging // 4 + pixels * tile["block_n"] * 2 * (tile["box"][2] < 8)
    # The pipeline, a buffer each for the stored tile and the residual, barriers.
    return stages * stage + staging * (1 + conv.residual) + 2048


def shared_bytes(conv: Conv, config: dict) -> int:
    """Shared memory that a descriptor kernel takes at most."""
    return _shared(conv, config, config["num_stages"])


def descriptor_configs(conv: Conv, capability: int, multiprocessors: int, tf32: bool) -> list[dict]:
    """Tiles of the descriptor kernels that fit in shared memory, the cheapest by estimate first; then,
    where tiles are few and sums long, those with sliced sums."""
    kind = descriptor_kind(conv, tf32)
    if kind is None:
        return []
    taps, channels = _reduction(conv, kind)
    strided = kind == "taps" and conv.stride == (2, 2) and conv.r * conv.s > 1
    limit = SMEM_LIMIT.get(capability, SMEM_LIMIT[90])
    widest = 128 // conv.element_size  # a swizzle atom
    depths = {min(widest, power_of_two(channels, 16, widest))}
    if channels % widest and channels > widest // 2:
        depths.add(widest // 2)
    if strided:
        depths = {next(d for d in (64, 32, 16) if d <= widest and channels % d == 0)}
    found, sliced = [], []
    for pixels, block_n, warps, penalty in MATRIX_TILES if kind == "matrix" else BOX_TILES:
        narrowest = 16 if kind == "matrix" else 64
        if block_n > power_of_two(conv.k, narrowest, 256):
            continue
        if pixels > power_of_two(conv.pixels, 64, 256):
            continue
        if kind == "matrix":
            useful, box = conv.pixels / _round_up(conv.pixels, pixels), (1, 1, pixels)
        else:
            useful, box = boxes(conv.n, conv.p, conv.q, pixels, conv.pool)[0]
        split = 2 if kind == "matrix" and block_n == 256 else 1
        for block_k in depths:
            tile = {"box": list(box), "block_n": block_n, "block_k": block_k, "split": split}
            fitting = [n for n in (4, 3, 2) if _shared(conv, tile, n) <= limit]
            if not fitting:
                continue
            stages = fitting[0]
            tiles = conv.pixels / useful / pixels * -(-conv.k // block_n)
            blocks = max(min(limit // _shared(conv, tile, stages), 64 // (4 * warps)), 1)
            clocks = taps * channels * max(pixels * block_n / 2048, (pixels + block_n) / 24)
            clocks += pixels * block_n * conv.element_size / 16 + 2000
            cost = -(-tiles // (multiprocessors * blocks)) * blocks * clocks * penalty
            config = {"kind": kind, **tile, "num_warps": warps, "num_stages": stages}
            found.append((cost, config | {"programs": 0, "flatten": False}))
            if tiles > multiprocessors and pixels * block_n >= 64 * 128:
                persistent = {"programs": multiprocessors, "flatten": True}
                found.append(
                    (cost * PERSISTENT, config | persistent | {"num_stages": min(stages, 3)})
                )
            slices, steps = 1, taps * -(-channels // block_k)
            while slices < 16 and 2 * slices * tiles <= multiprocessors and steps >= 8 * slices:
                slices *= 2
            if slices > 1 and not conv.pool:
                tile["slices"] = slices
                fitting = [n for n in (4, 3, 2) if _shared(conv, tile, n) <= limit]
                if fitting:
                    config |= {"slices": slices, "num_stages": fitting[0]}
                    sliced.append(config | {"programs": 0, "flatten": False})
    return [config for _, config in sorted(found, key=lambda item: item[0])] + sliced


def conv_configs(
    conv: Conv, capability: int = 90, multiprocessors: int = 132, *, tf32: bool = False
) -> list[dict]:
    """Every Triton config for this convolution on a GPU of this compute capability and number of
    multiprocessors; the first is the untuned default. ``tf32``: float32 runs in TF32."""
    found = []
    if capability >= 90:  # without TMA, descriptors are slower than computed addresses
        found = descriptor_configs(conv, capability, multiprocessors, tf32)
    return found + pointer_configs(conv, capability)


# (pixels, chunk of K1, warps, stages) of the fused pair, fastest first on an H100 at 56 x 56 and
# 28 x 28 (bfloat16, batch 64); and, not measured, for 256 channels and more: 64-pixel tiles of which
# a multiprocessor holds two, then 128-pixel tiles with a deeper pipeline.
PAIR_TILES = [
    (64, 32, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 3),
    (64, 32, 4, 2), (64, 64, 4, 2),
]  # fmt: skip
WIDE_PAIR_TILES = [
    (64, 32, 4, 2), (128, 32, 8, 3), (128, 32, 8, 4), (64, 64, 4, 2), (64, 32, 4, 3),
    (64, 32, 8, 2), (64, 32, 8, 3),
]  # fmt: skip


def pair_configs(c: int, k1: int, k2: int, element_size: int, capability: int = 90) -> list[dict]:
    """Tiles of the fused 1x1 pair that fit in registers and shared memory. "prefetch" issues a
    chunk's residual ahead; without (as measured) only other blocks on the multiprocessor hide it."""
    found, wide = [], max(c, k2) >= 256
    limit = SMEM_LIMIT.get(capability, SMEM_LIMIT[90])
    for prefetch in (wide, not wide):
        if prefetch and c * element_size >= 1024:
            continue  # spills
        for m, n, warps, stages in WIDE_PAIR_TILES if wide else PAIR_TILES:
            stage = n * c + k2 * n + m * n  # a chunk of both weights and of the residual
            shared = element_size * (m * c + stages * stage + m * n) + 1024
            # More than 128 sums per thread spill.
            if shared <= limit and k1 % n == 0 and m * k2 <= 128 * 32 * warps:
                config = {"block_m": m, "block_n": n, "prefetch": prefetch}
                found.append(config | {"num_warps": warps, "num_stages": stages})
    return found
