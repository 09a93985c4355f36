"""Labelled data sets decoded as they are read (ImageFolder, torchvision's), and load() for all."""

from __future__ import annotations

import inspect
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from . import labelled
from .labelled import ImageData, cifar10, digits, fashion_mnist
from .pictures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataNotFoundError,
    crop,
    pixels,
    resize_shorter,
)


class ImageFiles(torch.utils.data.Dataset):
    """A labelled split that is decoded as it is read: ImageFolder, or any torchvision data set.

    ``split[i]`` is the centre crop, ``split[i, seed]`` a crop drawn with ``seed``: uint8
    [3, size, size] and the label. The seed travels with the index, so that worker processes don't
    change what is drawn.
    """

    def __init__(self, data, size: int):
        self.data, self.size = data, size

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, label = self.data[index]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        image = resize_shorter(image.convert("RGB"), round(self.size * 256 / 224))
        return pixels(crop(image, self.size, generator)), int(label)


def _need_torchvision(spec: str):
    if find_spec("torchvision") is None:
        raise ModuleNotFoundError(f"data {spec!r} needs torchvision: pip install torchvision")
    import torchvision

    return torchvision.datasets


def image_folder(path: str | os.PathLike, size: int = 224) -> ImageData:
    """``PATH/train/CLASS/*.jpg`` and ``PATH/val`` (or ``test``): ImageNet's usual layout."""
    datasets = _need_torchvision(f"imagefolder:{path}")
    root = Path(path).expanduser()
    test = next((root / n for n in ("val", "test") if (root / n).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise DataNotFoundError(
            f"imagefolder: {str(root)!r} must hold a folder train and a folder val or test, "
            "each with one folder of images per class"
        )
    parts = [datasets.ImageFolder(str(p)) for p in (root / "train", test)]
    if parts[0].classes != parts[1].classes:
        odd = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise ValueError(f"imagefolder: {root}: train and {test.name} differ in the classes {odd}")
    splits = [ImageFiles(p, size) for p in parts]
    classes = tuple(parts[0].classes)
    return ImageData(root.name, *splits, classes, IMAGENET_MEAN, IMAGENET_STD, f"folder {root}")


def torchvision_data(
    name: str,
    data_dir: str | os.PathLike | None = None,
    size: int = 224,
    *,
    download: bool = True,
) -> ImageData:
    """Any of torchvision.datasets' classification sets, by class name (``SVHN``, …)."""
    datasets = _need_torchvision(f"torchvision:{name}")
    if name not in datasets.__all__:
        raise ValueError(f"torchvision:{name}: torchvision.datasets has no {name!r}")
    kind = getattr(datasets, name)
    arguments = inspect.signature(kind.__init__).parameters
    if "train" in arguments:
        choices = ({"train": True}, {"train": False})
    elif "split" in arguments:
        choices = ({"split": "train"}, {"split": "test"})
    else:
        raise ValueError(f"torchvision:{name}: it has no training and test split")
    given = data_dir or os.environ.get("CNNKERNELS_DATA_DIR")
    tried, cache = [], labelled.user_cache()
    for root, fetch in [(given, False), (cache, False), (cache, download)]:
        if root is None:
            continue
        extra = {"download": fetch} if "download" in arguments else {}
        try:
            train, test = (kind(str(root), **choice, **extra) for choice in choices)
        except Exception as error:  # torchvision raises whatever its reader of the day raises
            tried.append(f"{root}{' (download)' if fetch else ''}: {error}")
            continue
        labels = getattr(train, "classes", None) or range(1 + max(int(y) for _, y in train))
        splits = ImageFiles(train, size), ImageFiles(test, size)
        classes = tuple(str(label) for label in labels)
        return ImageData(
            name, *splits, classes, IMAGENET_MEAN, IMAGENET_STD, f"torchvision ({root})"
        )
    raise DataNotFoundError(
        f"torchvision:{name} was not found. Looked in:\n  " + "\n  ".join(tried)
    )


NAMES = {"digits": digits, "fashion-mnist": fashion_mnist, "cifar10": cifar10}


def load(
    spec: str,
    data_dir: str | os.PathLike | None = None,
    size: int = 224,
    *,
    download: bool = True,
) -> ImageData:
    """The data set that ``spec`` names.

    Args:
        spec: ``digits``, ``fashion-mnist``, ``cifar10``, ``imagefolder:PATH`` or
            ``torchvision:CLASS``.
        data_dir: where to look first.
        size: side of the crops that are taken from image files.
        download: let torchvision download what is nowhere else.
    """
    kind, _, rest = spec.partition(":")
    if spec in NAMES:
        return NAMES[spec](data_dir, download=download)
    if kind == "imagefolder" and rest:
        return image_folder(rest, size)
    if kind == "torchvision" and rest:
        return torchvision_data(rest, data_dir, size, download=download)
    allowed = ", ".join([*NAMES, "imagefolder:PATH", "torchvision:CLASS"])
    raise ValueError(f"data is {spec!r}; allowed are {allowed}")
