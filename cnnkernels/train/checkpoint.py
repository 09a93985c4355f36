"""Checkpoints that are either the old one or the new one, whenever the process dies."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

FORMAT = 1
NAME = "checkpoint.pt"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """``write`` fills a temporary file beside ``path``, which then takes its name.

    The bytes are on the disk before the name changes, so a power cut can't leave an empty file
    under it either.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    # mkstemp's files are the user's alone; the result is as readable as any new file.
    umask = os.umask(0)
    os.umask(umask)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def save(path: Path, state: dict) -> None:
    """Write a checkpoint; ``state`` holds tensors, numbers, strings, lists and dicts only."""
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))


def load(path: Path, device: torch.device | str = "cpu") -> dict:
    """Read a checkpoint; errors name the file and what is wrong. No code in it is ever run."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: there is no checkpoint to go on from")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        zipfile.BadZipFile,
        ValueError,
    ) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{path} is a PyTorch file, but not a checkpoint of cnnkernels train")
    if state["format"] != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {state['format']}; this version reads {FORMAT}"
        )
    return state
