"""What happens to features when the picture moves: equivariance of convolution, invariance by pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _moved(images: Tensor, pixels: int, margin: int) -> tuple[Tensor, Tensor]:
    """Two views of the pictures without their margin, the second ``pixels`` to the right: real
    content comes in at the edge, nothing is made up."""
    height, width = images.shape[-2:]
    here = images[..., margin : height - margin, margin : width - margin]
    there = images[..., margin : height - margin, margin + pixels : width - margin + pixels]
    return here, there


def _relative(difference: Tensor, of: Tensor) -> float:
    return float(difference.norm() / of.norm())


@torch.no_grad()
def equivariance_error(
    layer: Callable[[Tensor], Tensor], images: Tensor, pixels: int, jump: int = 1, border: int = 0
) -> float:
    """‖layer(moved) − moved(layer)‖ / ‖layer‖: 0 for a layer that commutes with the shift.

    Args:
        layer: maps [N, C, H, W] to [N, D, H', W'].
        images: [N, C, H, W].
        pixels: how far the picture moves; a multiple of ``jump``.
        jump: the layer's stride in input pixels.
        border: output pixels to leave out on every side (padding is not part of the picture).
    """
    if pixels % jump:
        raise ValueError(f"pixels is {pixels}; it must be a multiple of jump ({jump})")
    here, there = _moved(images, pixels, pixels)
    a, b, move = layer(here), layer(there), pixels // jump
    a, b = a[..., move:], b[..., : b.shape[-1] - move]
    if border:
        a, b = (t[..., border:-border, border:-border] for t in (a, b))
    return _relative(a - b, a)


@torch.no_grad()
def change_under_shift(features: Callable[[Tensor], Tensor], images: Tensor, pixels: int) -> float:
    """‖features(moved) − features(here)‖ / ‖features(here)‖: 0 for features that ignore the shift."""
    here, there = _moved(images, pixels, pixels)
    a, b = features(here), features(there)
    return _relative(a - b, a)
