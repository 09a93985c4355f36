"""The order of a run's images, and its batches: a function of the seed, the epoch and the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..data import ImageData, Images, len_of
from . import recipe as recipe_module
from .augment import Augment, colour_components
from .recipe import Recipe, derive


def epoch_order(recipe: Recipe, n: int, epoch: int) -> torch.Tensor:
    """A permutation of n images for one epoch: int64 [n]."""
    generator = torch.Generator().manual_seed(derive(recipe.seed, recipe_module.ORDER, epoch))
    return torch.randperm(n, generator=generator)


def spaced(n: int, count: int | None) -> torch.Tensor:
    """``count`` of n indices, evenly spaced (all for None): a set sorted by class stays balanced."""
    count = n if count is None else min(n, count)
    return torch.arange(count) * n // max(count, 1)


def held_out(n: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of n images to train on and to validate on (evenly spaced, about ``share`` of them)."""
    validation = spaced(n, max(1, round(n * share)) if share else 0)
    rest = torch.ones(n, dtype=torch.bool)
    rest[validation] = False
    return rest.nonzero().flatten(), validation


def _colour_sample(split) -> torch.Tensor:
    """Up to 10,000 (in memory) or 256 (files) images, evenly spaced: uint8 [N, C, H, W]."""
    if isinstance(split, Images):
        return split.images[:: max(1, len(split.images) // 10_000)]
    return torch.stack([split[i][0] for i in range(0, len(split), max(1, len(split) // 256))])


class Batches:
    """Batches of one process, ready for the model.

    Args:
        data: the data set; splits in memory are moved to ``device`` once.
        recipe: batch size, seed, augmentation, image size.
        input_size: (channels, side) that the model takes.
        device: where batches go.
        rank, world: this process and how many there are; each takes its part of every batch.
        workers: processes that decode image files (0: none); of no use for images in memory.
    """

    def __init__(self, data: ImageData, recipe: Recipe, input_size: tuple[int, int],
                 device: torch.device, rank: int = 0, world: int = 1, workers: int = 0):  # fmt: skip
        self.recipe, self.device, self.workers = recipe, device, workers
        self.rank, self.world = rank, world
        self.channels, self.side = input_size
        rest, validation = held_out(len_of(data.train), recipe.validation)
        self.chosen = rest[spaced(len(rest), recipe.limit)]
        self.n = len(self.chosen)
        self.steps = self.n // recipe.batch
        if self.steps == 0:
            raise ValueError(
                f"batch is {recipe.batch}, but there are only {self.n} training images"
            )
        if recipe.batch % world:
            raise ValueError(
                f"batch is {recipe.batch}; it must be a multiple of the {world} processes"
            )
        if data.channels != self.channels and data.channels != 1:
            raise ValueError(
                f"data {data.name} has {data.channels} channels, but the model takes {self.channels}"
            )
        self.mean = torch.tensor(data.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(-1, 1, 1)
        colour = (
            colour_components(_colour_sample(data.train)) if "colour" in recipe.augment else None
        )
        self.augment = Augment(recipe.augment, colour, recipe.strength)
        self.train, self.test = (
            Images(split.images.to(device), split.labels.to(device))
            if isinstance(split, Images)
            else split
            for split in (data.train, data.test)
        )
        self.tested = torch.arange(len_of(data.test))
        if recipe.validation:
            self.test, self.tested = self.train, validation

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Floats in 0…1 to what the model takes: [B, channels, side, side], normalised."""
        side = images.shape[-1]
        if side != self.side:
            if self.recipe.fit == "pad" and 0 < self.side - side <= 4:
                before, after = (self.side - side) // 2, (self.side - side + 1) // 2
                images = F.pad(images, (before, after, before, after))
            elif side % self.side == 0:
                images = F.avg_pool2d(images, side // self.side)
            else:
                images = F.interpolate(
                    images, (self.side, self.side), mode="bilinear", antialias=side > self.side
                )
        images = (images - self.mean) / self.std
        if images.shape[1] != self.channels:  # grey to colour
            images = images.expand(-1, self.channels, -1, -1)
        format = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=format)

    def _read(self, split, keys: list) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 images and labels for each entry of ``keys`` (lists of indices, perhaps seeded)."""
        if isinstance(split, Images):
            for key in keys:
                yield split.images[key], split.labels[key]
            return
        loader = torch.utils.data.DataLoader(
            split, batch_sampler=keys, num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for images, labels in loader:
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )

    def training(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's part of the epoch's batches, from step ``first`` on.

        The images after the last full batch wait for another epoch's order.
        """
        seed, size = self.recipe.seed, self.recipe.batch
        order = self.chosen[epoch_order(self.recipe, self.n, epoch)]
        share = size // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        steps = range(first, self.steps)
        keys = [order[s * size : (s + 1) * size][mine] for s in steps]
        if isinstance(self.train, Images):
            keys = [key.to(self.device) for key in keys]
        else:
            keys = [
                [(i, derive(seed, recipe_module.FILES, epoch, i)) for i in key.tolist()]
                for key in keys
            ]
        for step, (images, labels) in zip(steps, self._read(self.train, keys), strict=True):
            generator = torch.Generator()
            generator.manual_seed(derive(seed, recipe_module.AUGMENT, epoch, step))
            drawn = self.augment.draw(size, generator)
            drawn = {name: value[mine] for name, value in drawn.items()}
            yield self._prepare(self.augment(images.float() / 255, drawn)), labels

    def testing(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's share of the test (or held-out) images, in order, in batches of ``size``."""
        indices = self.tested[self.rank :: self.world].split(size)
        keys = list(indices) if isinstance(self.test, Images) else [i.tolist() for i in indices]
        for images, labels in self._read(self.test, keys):
            yield self._prepare(images.float() / 255), labels
