"""What can be tuned: the Triton convolution's configs for a shape, best guess first."""

from __future__ import annotations

from collections.abc import Sequence
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


def pointer_configs(conv: Conv) -> list[dict]:
    """Tiles of the pointer kernel. FLAT where the channels of a group don't fill a chunk."""
    cg, kg = conv.c // conv.groups, conv.k // conv.groups
    flat = cg < 16
    reduction = cg * conv.r * conv.s if flat else cg
    block_k = power_of_two(reduction, 16, 64 if conv.element_size == 2 else 32)
    block_n = power_of_two(kg, 16, 128)
    # Few pixels: smaller tiles, so that every multiprocessor gets one.
    block_m = 128 if conv.pixels >= 128 * 64 else power_of_two(conv.pixels, 16, 64)
    tiles = [(block_m, block_n, 4)]
    if conv.pixels >= 4096:
        tiles += [(256, block_n, 8), (128, block_n, 8), (64, block_n, 4)]
        if kg > 128:
            tiles += [(128, 256, 8)]
        if block_n > 64:
            tiles += [(128, 64, 4), (256, 64, 8)]
    configs = []
    for m, n, warps in tiles:
        for stages in (3, 4):
            step = (m + n) * block_k * conv.element_size
            if step * stages <= SMEM_LIMIT[90] - 4096:
                configs.append(
                    {"kind": "pointer", "block_m": m, "block_n": n, "block_k": block_k,
                     "flat": flat, "num_warps": warps, "num_stages": stages}
                )  # fmt: skip
    return list({tuple(c.items()): c for c in configs}.values())


def conv_configs(conv: Conv, capability: int = 90) -> Sequence[dict]:
    """Every candidate for this convolution on sm_<capability>; the first is the untuned default."""
    return pointer_configs(conv)
