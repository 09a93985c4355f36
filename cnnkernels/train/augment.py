"""Random changes of training images: crops, flips, small affine and elastic maps, PCA colour.

All random numbers of a step are drawn at once, for the whole (global) batch, from a generator that
is seeded by the step. A process of several then takes its slice: what an image gets depends on its
place in the batch alone, not on the number of processes or on what ran before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

NAMES = ("affine", "elastic", "crop", "flip", "colour")


class Augment:
    """Callable: float images in 0…1, [B, C, H, W], to images of the same shape.

    Args:
        names: any of "affine" (rotation ±12°, scale and shear ±12 %, shift ±7 %), "elastic"
            (Simard et al. 2003: a smooth random displacement), "crop" (zero-pad by an eighth, crop
            at random), "flip" (left–right), "colour" (Krizhevsky et al. 2012: a random multiple of
            the training set's colour components is added).
        colour: the components scaled by their deviations, [C, C]; needed for "colour".
        strength: factor on the sizes named above (not on "flip").
    """

    def __init__(
        self,
        names: tuple[str, ...],
        colour: torch.Tensor | None = None,
        strength: float = 1.0,
    ):
        self.names, self.colour, self.strength = names, colour, strength

    def draw(self, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The random numbers for a batch of n, in the order of NAMES: each of shape [n, …]."""

        def uniform(*shape):
            return torch.rand(n, *shape, generator=generator) * 2 - 1

        drawn = {}
        for name in NAMES:
            if name not in self.names:
                continue
            if name == "affine":
                drawn[name] = uniform(6)
            elif name == "elastic":
                drawn[name] = torch.randn(n, 2, 5, 5, generator=generator)
            elif name == "crop":
                drawn[name] = uniform(2)
            elif name == "flip":
                drawn[name] = uniform()
            else:
                drawn[name] = torch.randn(n, len(self.colour), generator=generator)
        return drawn

    def __call__(self, images: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
        drawn = {name: value.to(images.device) for name, value in drawn.items()}
        if "affine" in drawn or "elastic" in drawn:
            images = _warp(images, drawn.get("affine"), drawn.get("elastic"), self.strength)
        if "crop" in drawn:
            images = _crop(images, drawn["crop"], self.strength)
        if "flip" in drawn:
            images = torch.where(drawn["flip"].view(-1, 1, 1, 1) > 0, images, images.flip(3))
        if "colour" in drawn:
            shift = 0.1 * self.strength * drawn["colour"] @ self.colour.to(images.device)
            images = images + shift[:, :, None, None]
        return images


def _warp(images, affine, elastic, strength: float) -> torch.Tensor:
    """One bilinear resampling for both maps; what comes from outside is 0 (black)."""
    n, _, h, w = images.shape
    if affine is None:
        affine = images.new_zeros(n, 6)
    affine = strength * affine
    angle = affine[:, 0] * math.radians(12)
    sx, sy = 1 + 0.12 * affine[:, 1], 1 + 0.12 * affine[:, 2]
    shear, tx, ty = 0.12 * affine[:, 3], 0.14 * affine[:, 4], 0.14 * affine[:, 5]
    cos, sin = angle.cos(), angle.sin()
    rows = [sx * cos, shear - sin, tx, sin, sy * cos, ty]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), (n, 1, h, w), align_corners=False)
    if elastic is not None:
        # A coarse field of normal displacements (deviation 4 % of the side), smoothly enlarged.
        field = F.interpolate(elastic, (h, w), mode="bicubic", align_corners=True)
        grid = grid + 0.08 * strength * field.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def _crop(images, shift, strength: float) -> torch.Tensor:
    """Whole-pixel shifts by up to an eighth of the side, zeros from outside."""
    n, _, h, w = images.shape
    pad = max(1, round(strength * h / 8))
    top, left = (torch.floor((shift.T + 1) / 2 * (2 * pad + 1)).clamp(0, 2 * pad)).long()
    padded = F.pad(images, (pad, pad, pad, pad))
    rows = top[:, None] + torch.arange(h, device=images.device)  # [N, H]
    columns = left[:, None] + torch.arange(w, device=images.device)  # [N, W]
    batch = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def colour_components(images: torch.Tensor) -> torch.Tensor:
    """Principal components of the pixels' colours times their deviations: [C, C].

    ``images``: uint8 [N, C, H, W]. Row i is component i scaled by the square root of its variance.
    (The paper scales by the variance itself with pixels in 0…255; the deviation keeps the shift in
    proportion whatever the pixels' unit.)
    """
    pixels = images.movedim(1, -1).reshape(-1, images.shape[1]).double() / 255
    covariance = (pixels - pixels.mean(0)).T @ (pixels - pixels.mean(0)) / len(pixels)
    variance, vectors = torch.linalg.eigh(covariance)
    return (vectors * variance.clamp(min=0).sqrt()).T.float()
