"""Real images: photographs, the order in which data sets are looked for, their file formats."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnkernels import data
from cnnkernels.data import labelled, pictures

SAMPLE = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _no_other_sources(monkeypatch, tmp_path):
    """An empty cache, no system package, no environment: what the test gives is all there is."""
    monkeypatch.setattr(labelled, "user_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(labelled, "SYSTEM_PREFIXES", (str(tmp_path / "usr"),))
    monkeypatch.delenv("CNNKERNELS_DATA_DIR", raising=False)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, pixel: int, suffix: str = ".gz", n: int = 20) -> None:
    """Four IDX files in MNIST's names; every pixel has one value, by which it is known again."""
    for part, count in (("train", n), ("t10k", n // 2)):
        images = np.full((count, 28, 28), pixel, np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(
            folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10
        )


# --- photographs -------------------------------------------------------------------------------


def test_photographs_are_what_torchvision_makes_of_them():
    transforms = pytest.importorskip("torchvision.transforms")
    expected = transforms.Compose([
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    shown = data.photographs()
    files = dict(pictures._package_files())
    assert len(shown.names) == len(files) >= 1
    for image, name in zip(shown.images, shown.names, strict=True):
        reference = expected(Image.open(files[name]).convert("RGB"))
        torch.testing.assert_close(image, reference, rtol=0, atol=1e-6)


def test_photographs_beyond_the_files_are_other_crops():
    one = data.photographs()
    n = len(one.names)
    more = data.photographs(n + 2, 64, seed=3)
    assert more.images.shape == (n + 2, 3, 64, 64) and more.images.dtype == torch.float32
    assert more.names[n] == f"{one.names[0]} (crop 1)"
    assert not torch.equal(more.images[n], more.images[0])
    assert torch.equal(more.images, data.photographs(n + 2, 64, seed=3).images)
    assert not torch.equal(more.images[n], data.photographs(n + 2, 64, seed=4).images[n])
    assert more.images.std() > 0.5  # pictures, not a constant


def test_photographs_in_grey_and_from_a_folder(tmp_path):
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "a.png")
    grey = data.photographs(size=28, channels=1, folder=tmp_path)
    assert grey.images.shape == (1, 1, 28, 28) and grey.names == ("a.png",)
    torch.testing.assert_close(grey.images, torch.full((1, 1, 28, 28), (200 / 255 - 0.449) / 0.226))


def test_photographs_bad_input(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="size is 0"):
        data.photographs(size=0)
    with pytest.raises(ValueError, match="count is -1"):
        data.photographs(-1)
    with pytest.raises(ValueError, match="channels is 2"):
        data.photographs(channels=2)
    with pytest.raises(NotADirectoryError, match="nowhere"):
        data.photographs(folder=tmp_path / "nowhere")
    with pytest.raises(data.DataNotFoundError, match="no image"):
        data.photographs(folder=tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(ValueError, match=r"broken\.jpg is not a readable image"):
        data.photographs(folder=tmp_path)
    monkeypatch.setattr(pictures, "_package_files", lambda: [])
    with pytest.raises(data.DataNotFoundError, match=r"matplotlib.*scikit-learn.*scikit-image"):
        data.photographs()


# --- data sets ---------------------------------------------------------------------------------


def test_the_sample_is_real_and_balanced():
    sample = data.fashion_mnist(SAMPLE, download=False)
    assert sample.train.images.shape == (2000, 1, 28, 28)
    assert torch.bincount(sample.test.labels).tolist() == [50] * 10
    pixels = data.normalize(sample.train.images, sample.mean, sample.std)
    assert abs(pixels.mean()) < 0.05 and abs(pixels.std() - 1) < 0.05
    assert (SAMPLE / "fashion-mnist.npz").stat().st_size < 2**21
    assert str(SAMPLE) in sample.source and "--data-dir" in sample.source


def test_sources_are_tried_in_order(tmp_path, monkeypatch):
    user, cache = tmp_path / "user", tmp_path / "cache"
    write_mnist(tmp_path / "usr/share/datasets/fashion-mnist", 1)
    user.mkdir()

    def taken():
        found = data.fashion_mnist(user, download=False)
        return found.source.split(" (")[0], int(found.test.images[0, 0, 0, 0])

    assert taken() == ("system package", 1)
    write_mnist(cache / "FashionMNIST/raw", 2)
    assert taken() == ("user cache", 2)
    write_mnist(user / "fashion-mnist", 3)
    assert taken() == ("--data-dir", 3)
    monkeypatch.setenv("CNNKERNELS_DATA_DIR", str(user))
    assert data.fashion_mnist(download=False).source.startswith("CNNKERNELS_DATA_DIR")


def test_download_comes_last_and_is_read_from_the_cache(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    def download(root, download):
        assert download
        write_mnist(Path(root) / "MNIST/raw", 9)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert data.digits().source.startswith("torchvision's download")
    assert data.digits().source.startswith("user cache")


def test_the_error_names_every_source(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    def download(*args, **kwargs):
        raise OSError("the network is away")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    with pytest.raises(data.DataNotFoundError) as error:
        data.digits()
    for part in ("--data-dir", "CNNKERNELS_DATA_DIR", "mnist10k.npz", str(tmp_path / "cache"),
                 str(tmp_path / "usr/share/datasets/mnist"), "the network is away"):  # fmt: skip
        assert part in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path, suffix):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
    write_mnist(tmp_path / "MNIST/raw", 0, suffix, n=30)
    write_idx(tmp_path / f"MNIST/raw/train-images-idx3-ubyte{suffix}", images)
    found = data.digits(tmp_path, download=False)
    assert found.train.images.dtype == torch.uint8 and found.train.labels.dtype == torch.int64
    assert np.array_equal(found.train.images[:, 0].numpy(), images)
    assert found.train.labels.tolist() == [*range(10)] * 3


def test_digits_do_not_take_fashion_for_digits(tmp_path):
    """The two share their file names; a folder given by itself counts by its name."""
    write_mnist(tmp_path / "fashion-mnist", 5)
    with pytest.raises(data.DataNotFoundError):
        data.digits(tmp_path / "fashion-mnist", download=False)
    assert data.fashion_mnist(tmp_path / "fashion-mnist", download=False).train.images[0].max() == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x0d\x03" + bytes(12), "header"),
        (struct.pack(">HBB3I", 0, 8, 3, 5, 28, 28) + bytes(7), "holds 7 bytes"),
        (b"\x00", "readable IDX"),
    ],
)
def test_damaged_idx(tmp_path, content, message):
    write_mnist(tmp_path / "mnist", 5, "")
    (tmp_path / "mnist/train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.digits(tmp_path, download=False)
    assert "train-images-idx3-ubyte" in str(error.value)


def test_damaged_gz_and_npz(tmp_path):
    write_mnist(tmp_path / "mnist", 5)
    path = tmp_path / "mnist/t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="t10k-images"):
        data.digits(tmp_path, download=False)
    np.savez(tmp_path / "fashion-mnist.npz", x_train=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(ValueError, match=r"not an \.npz of x_train, y_train"):
        data.fashion_mnist(tmp_path, download=False)
    images, labels = np.zeros((3, 28, 28), np.uint8), np.array([0, 1, 10], np.uint8)
    arrays = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez(tmp_path / "fashion-mnist.npz", **arrays)
    with pytest.raises(ValueError, match="0 to 10, not 0 to 9"):
        data.fashion_mnist(tmp_path, download=False)


def make_folder(root: Path, parts=("train", "val"), classes=("cat", "dog")) -> None:
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (50, 70, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")


def test_image_folder(tmp_path):
    pytest.importorskip("torchvision")
    make_folder(tmp_path)
    found = data.load(f"imagefolder:{tmp_path}", size=32)
    assert found.classes == ("cat", "dog") and data.len_of(found.train) == 4
    image, label = found.train[3]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and label == 1
    drawn, again, other = (found.train[3, seed][0] for seed in (1, 1, 2))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_image_folder_bad_input(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(data.DataNotFoundError, match="folder train"):
        data.load(f"imagefolder:{tmp_path}")
    make_folder(tmp_path, ("train",))
    make_folder(tmp_path, ("val",), ("cat", "cow"))
    with pytest.raises(ValueError, match=r"\['cow', 'dog'\]"):
        data.load(f"imagefolder:{tmp_path}")


def test_torchvision_data_set(tmp_path):
    """Any of torchvision's classes works; FakeData needs no files, and has no split: an error."""
    pytest.importorskip("torchvision")
    write_mnist(tmp_path / "KMNIST/raw", 6, "", n=20)
    found = data.load("torchvision:KMNIST", tmp_path, size=28, download=False)
    assert data.len_of(found.train) == 20 and data.len_of(found.test) == 10
    assert (found.train[0][0] == 6).all() and found.train[0][0].shape == (3, 28, 28)
    with pytest.raises(ValueError, match="no training and test split"):
        data.load("torchvision:FakeData")
    with pytest.raises(ValueError, match="has no 'Nonesuch'"):
        data.load("torchvision:Nonesuch")


def test_load_names_what_is_allowed():
    with pytest.raises(
        ValueError, match=r"'mnist'.*digits, fashion-mnist, cifar10, imagefolder:PATH"
    ):
        data.load("mnist")


def test_cifar10_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    labels = np.arange(4, dtype=np.uint8)
    arrays = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    found = data.load("cifar10", tmp_path, download=False)
    assert found.channels == 3 and found.train.images.shape == (4, 3, 32, 32)
    assert np.array_equal(found.train.images[1].permute(1, 2, 0).numpy(), images[1])
