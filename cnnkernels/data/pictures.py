"""Photographs that come with well-known packages: real pixels without a download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DataNotFoundError(FileNotFoundError):
    """No source has the data; the message names every source and what was wrong with it."""


# (package, files inside it); all of them are pictures that the packages ship with themselves.
_PHOTOGRAPHS = (
    ("matplotlib", ("mpl-data/sample_data/grace_hopper.jpg",)),
    ("sklearn", ("datasets/images/china.jpg", "datasets/images/flower.jpg")),
    (
        "skimage",
        tuple(
            f"data/{name}"
            for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg",
                         "motorcycle_left.png", "camera.png")
        ),
    ),
)  # fmt: skip


class Photographs(NamedTuple):
    """Normalised photographs, and where each came from."""

    images: torch.Tensor  # [N, channels, size, size], float32
    names: tuple[str, ...]  # "matplotlib/grace_hopper.jpg", one per image
    source: str  # one line for a report


def _package_files() -> list[tuple[str, Path]]:
    found = []
    for package, files in _PHOTOGRAPHS:
        spec = find_spec(package)  # finds the folder without importing the package
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            found += [
                (f"{package}/{Path(file).name}", Path(folder, file))
                for file in files
                if Path(folder, file).is_file()
            ]
    return found


def _folder_files(folder: str | os.PathLike) -> list[tuple[str, Path]]:
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"folder is {str(folder)!r}, which is not a folder")
    Image.init()
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in Image.EXTENSION]
    if not files:
        raise DataNotFoundError(f"folder {str(folder)!r} holds no image that Pillow can read")
    return [(str(p.relative_to(folder)), p) for p in files]


def _decode(path: Path, channels: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to ``size``, as torchvision.transforms.Resize (which truncates the other)."""
    w, h = image.size
    new = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    return image.resize(new, Image.Resampling.BILINEAR)


def crop(image: Image.Image, size: int, generator: torch.Generator | None) -> Image.Image:
    """A square of side ``size``: the centre one, or one drawn with ``generator``."""
    w, h = image.size
    if generator is None:
        left, top = round((w - size) / 2), round((h - size) / 2)
    else:
        left = int(torch.randint(w - size + 1, (), generator=generator))
        top = int(torch.randint(h - size + 1, (), generator=generator))
    return image.crop((left, top, left + size, top + size))


def pixels(image: Image.Image) -> torch.Tensor:
    """uint8 [C, H, W]."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def photographs(
    count: int | None = None,
    size: int = 224,
    *,
    channels: int = 3,
    folder: str | os.PathLike | None = None,
    seed: int = 0,
) -> Photographs:
    """Real photographs, decoded, resized, cropped and normalised as torchvision's transforms do.

    They come with the packages matplotlib, scikit-learn and scikit-image (whichever are installed),
    or from ``folder``. The shorter side is resized to ``size * 256 / 224`` and the centre cropped.

    Args:
        count: how many; default: one of each. When there are fewer pictures, the rest are other
            crops of the same ones, larger and placed at random (by ``seed``).
        size: side of the square images, in pixels.
        channels: 3 (normalised with ImageNet's mean and deviation) or 1 (luminance).
        folder: a folder of image files to use in place of the packages' pictures.

    Returns ``images`` [count, channels, size, size] float32 in NCHW, ``names`` and ``source``.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; it must be 1 or 3")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size is {size!r}; it must be a positive int")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ValueError(f"count is {count!r}; it must be a positive int or None")
    files = _folder_files(folder) if folder is not None else _package_files()
    if not files:
        raise DataNotFoundError(
            "no photographs: install matplotlib (sample_data/grace_hopper.jpg), scikit-learn "
            "(load_sample_images) or scikit-image (bundled pictures), or give a folder of images"
        )
    count = len(files) if count is None else count
    generator = torch.Generator().manual_seed(seed)
    images, names = [], []
    for i in range(count):
        name, path = files[i % len(files)]
        image = _decode(path, channels)
        if i < len(files):
            image = crop(resize_shorter(image, round(size * 256 / 224)), size, None)
        else:
            scale = 1.2 + 0.8 * float(torch.rand((), generator=generator))
            image = crop(resize_shorter(image, round(size * scale)), size, generator)
            name += f" (crop {i // len(files)})"
        images.append(pixels(image))
        names.append(name)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.449,), (0.226,))
    batch = normalize(torch.stack(images), mean, std)
    packages = sorted({name.split("/")[0] for name, _ in files})
    where = str(folder) if folder is not None else "the packages " + ", ".join(packages)
    return Photographs(batch, tuple(names), f"{min(count, len(files))} photographs from {where}")


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [N, C, H, W] to float32 ``(x / 255 - mean) / std``, channel by channel."""
    mean = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(std, device=images.device).view(-1, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)
