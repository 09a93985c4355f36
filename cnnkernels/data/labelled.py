"""Labelled data sets that fit in memory: digits, Fashion-MNIST, CIFAR-10.

Every one is looked for in one order: the user's folder (``data_dir``, else
``$CNNKERNELS_DATA_DIR``), the user cache, a system data package, torchvision's download. The
result's ``source`` says which one was taken; when none has it, the error names all of them.
"""

from __future__ import annotations

import gzip
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .. import _lib
from .pictures import DataNotFoundError

# Where a distribution's data packages lie (Debian's dataset-fashion-mnist: /usr/share/datasets).
SYSTEM_PREFIXES = tuple(dict.fromkeys(("/usr", "/usr/local", sys.prefix)))


class Images(NamedTuple):
    """A labelled split in memory."""

    images: torch.Tensor  # uint8 [N, C, H, W]
    labels: torch.Tensor  # int64 [N]


@dataclass(frozen=True)
class ImageData:
    """A data set: two splits, class names, pixel mean and deviation, and where it came from."""

    name: str
    train: Images | torch.utils.data.Dataset
    test: Images | torch.utils.data.Dataset
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    @property
    def channels(self) -> int:
        return len(self.mean)

    def __str__(self) -> str:
        return (
            f"{self.name}: {len_of(self.train):,} training and {len_of(self.test):,} test images "
            f"from {self.source}"
        )


def len_of(split: Images | torch.utils.data.Dataset) -> int:
    """Number of images in a split."""
    return len(split.labels) if isinstance(split, Images) else len(split)


def user_cache() -> Path:
    """Where downloads go and are looked for."""
    return _lib.user_cache() / "data"


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes (http://yann.lecun.com/exdb/mnist), gzipped or not, as an array."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        if zeros != 0 or kind != 8 or rank not in (1, 3):
            raise ValueError("its header is not that of an IDX file of bytes, rank 1 or 3")
        shape = struct.unpack_from(f">{rank}I", content, 4)
        data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
        if data.size != int(np.prod(shape)):
            raise ValueError(f"its header says {shape}, but it holds {data.size} bytes")
    except (OSError, EOFError, struct.error, ValueError) as error:
        raise ValueError(f"{path} is not a readable IDX file: {error}") from error
    return data.reshape(shape)


def _split(images: np.ndarray, labels: np.ndarray, where: Path, classes: int) -> Images:
    """Check a split's arrays, [N, H, W] or [N, H, W, C] and [N], and make tensors of them."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"{where}: images are {images.dtype} {images.shape}, not uint8 [N, H, W]")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(
            f"{where}: labels are {labels.dtype} {labels.shape} for {len(images)} images"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{where}: labels reach from {labels.min()} to {labels.max()}, not 0 to {classes - 1}"
        )
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Images(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def _read_npz(folder: Path, names: Sequence[str], classes: int):
    """x_train, y_train, x_test, y_test (Keras's layout) of the first such file; or None."""
    for path in (folder / name for name in names):
        if not path.is_file():
            continue
        keys = ("x_train", "y_train", "x_test", "y_test")
        try:
            with np.load(path, allow_pickle=False) as file:
                xa, ya, xb, yb = (file[key] for key in keys)
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{path} is not an .npz of {', '.join(keys)}: {error}") from error
        return _split(xa, ya, path, classes), _split(xb, yb, path, classes), str(path)
    return None


def _read_mnist(folder: Path, subfolders: Sequence[str], npz: Sequence[str]):
    """The splits in ``folder`` as four IDX files or an .npz; or None."""
    for place in (folder / sub for sub in subfolders):
        files = []
        for part in (
            "train-images-idx3",
            "train-labels-idx1",
            "t10k-images-idx3",
            "t10k-labels-idx1",
        ):
            names = (f"{part}-ubyte", f"{part}-ubyte.gz")
            files += [place / name for name in names if (place / name).is_file()][:1]
        if len(files) == 4:
            xa, ya, xb, yb = map(_read_idx, files)
            return _split(xa, ya, place, 10), _split(xb, yb, place, 10), str(place)
    return _read_npz(folder, npz, 10)


def _find(
    name: str,
    read: Callable[[Path], tuple | None],
    data_dir: str | os.PathLike | None,
    system: Sequence[str],
    download: Callable[[Path], object] | None,
    hint: str,
):
    """Try every source in the documented order; (train, test, source) of the first that has it."""
    tried = []
    given = data_dir or os.environ.get("CNNKERNELS_DATA_DIR")
    which = "--data-dir" if data_dir else "CNNKERNELS_DATA_DIR"
    if given and not Path(given).expanduser().is_dir():
        raise NotADirectoryError(f"{which} is {str(given)!r}, which is not a folder")
    places = [(which, Path(given).expanduser())] if given else []
    places += [("user cache", user_cache())]
    places += [
        ("system package", Path(p, "share/datasets", s)) for p in SYSTEM_PREFIXES for s in system
    ]
    for kind, place in places:
        if found := read(place):
            return *found[:2], f"{kind} ({found[2]})"
        tried.append(f"{kind}: {place} has none")
    if not given:
        tried.insert(0, f"--data-dir, CNNKERNELS_DATA_DIR: not given ({hint})")
    if download is None or find_spec("torchvision") is None:
        why = "switched off" if download is None else "torchvision is not installed"
        tried.append(f"torchvision's download: {why}")
    else:
        try:
            user_cache().mkdir(parents=True, exist_ok=True)
            download(user_cache())
            if found := read(user_cache()):
                return *found[:2], f"torchvision's download ({found[2]})"
            tried.append("torchvision's download: it left nothing readable")
        except Exception as error:  # whatever the network does, the user is told every source
            tried.append(f"torchvision's download: {error}")
    raise DataNotFoundError(f"{name} was not found. Looked in:\n  " + "\n  ".join(tried))


def _mnist(name: str, folders: Sequence[str], npz: Sequence[str], own: str, data_dir, download):
    """MNIST and Fashion-MNIST share their file names, so a bare folder counts by its own name."""
    fashion = "fashion" in name

    def read(folder: Path):
        bare = "mnist" in folder.name.lower() and ("fashion" in folder.name.lower()) == fashion
        return _read_mnist(folder, [*folders, "."] if bare else folders, npz)

    def fetch(root: Path):
        import torchvision

        getattr(torchvision.datasets, own)(str(root), download=True)

    hint = f"a folder with {', '.join(npz)} or {folders[0]}/*-ubyte.gz"
    return _find(name, read, data_dir, folders[1:], fetch if download else None, hint)


def digits(data_dir: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """MNIST's digits, 28×28, 10 classes: IDX files, ``mnist10k.npz`` or ``mnist.npz``."""
    npz = ("mnist10k.npz", "mnist.npz")
    found = _mnist("digits", ("MNIST/raw", "mnist"), npz, "MNIST", data_dir, download)
    train, test, source = found
    return ImageData("digits", train, test, tuple("0123456789"), (0.1307,), (0.3081,), source)


def fashion_mnist(data_dir: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """Fashion-MNIST (Xiao et al. 2017): articles of clothing, 28×28, 10 classes."""
    folders, npz = ("FashionMNIST/raw", "fashion-mnist"), ("fashion-mnist.npz",)
    found = _mnist("fashion-mnist", folders, npz, "FashionMNIST", data_dir, download)
    train, test, source = found
    names = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot"
    return ImageData(
        "fashion-mnist", train, test, tuple(names.split()), (0.28604,), (0.35302,), source
    )


def cifar10(data_dir: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """CIFAR-10, 32×32 colour, 10 classes: torchvision's folder or ``cifar10.npz``."""

    def read(folder: Path):
        if (folder / "cifar-10-batches-py").is_dir():
            from torchvision.datasets import CIFAR10

            parts = [CIFAR10(str(folder), train=train) for train in (True, False)]
            place = folder / "cifar-10-batches-py"
            splits = [_split(p.data, np.array(p.targets), place, 10) for p in parts]
            return *splits, str(place)
        return _read_npz(folder, ("cifar10.npz",), 10)

    def fetch(root: Path):
        from torchvision.datasets import CIFAR10

        CIFAR10(str(root), download=True)

    hint = "a folder with cifar-10-batches-py or cifar10.npz"
    train, test, source = _find("cifar10", read, data_dir, (), fetch if download else None, hint)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return ImageData("cifar10", train, test, tuple(names.split()), mean, std, source)
