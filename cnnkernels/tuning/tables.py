"""Reading and writing the tables' files."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import os
import platform
import re
import tempfile
import warnings
from pathlib import Path

import torch

from .. import _lib

SCHEMA = 1  # raised when keys, entries or the meaning of a config change
CONFIGS = Path(__file__).resolve().parent / "configs"


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1]
    return platform.processor() or platform.machine()


@functools.cache
def device_name(device: torch.device) -> str:
    """A device's table name: "NVIDIA_H100_80GB_HBM3", "cpu_Intel_R_Xeon_R_…"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} {_processor()}" if device.type == "cpu" else device.type
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def user_table(device: torch.device) -> Path:
    """Where the user's own table for this device is."""
    return _lib.user_cache() / "tuning" / f"{device_name(device)}.json"


@contextlib.contextmanager
def _no_collection():
    """Thousands of new objects would start a garbage collection, which walks all that torch made:
    four times as long as reading the table."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: Path) -> dict[str, dict]:
    """The file's entries; FileNotFoundError, OSError or ValueError when it can't be used."""
    with _no_collection():
        content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"schema {found!r}, this version reads {SCHEMA}")
    if content.get("gpu") != path.stem:
        raise ValueError(f"it was measured on {content.get('gpu')!r}, not {path.stem!r}")
    entries = content.get("entries")
    if not isinstance(entries, dict):
        raise ValueError("it has no entries")
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("impl"), str):
            raise ValueError(f"the entry of {key} names no impl")
        if not isinstance(entry.get("config"), (dict, type(None))):
            raise ValueError(f"the config of {key} is not an object")
    return entries


@functools.cache
def _table(path: Path) -> dict[str, dict]:
    try:
        return _read(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"cnnkernels: tuning table {path} ignored: {error}", stacklevel=2)
        return {}


def save(new: dict[str, dict], device: torch.device, path: Path | None = None) -> Path:
    """Merge ``new`` entries into the user's table for this device; returns its path.

    The file is replaced in one step, under a lock: a reader sees the old table or the new one, and
    of two processes writing at once both keep their entries. An unusable file is kept as ``.bad``.
    """
    path = path or user_table(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            entries = _read(path)
        except FileNotFoundError:
            entries = {}
        except (OSError, ValueError) as error:
            bad = path.with_suffix(".bad")
            warnings.warn(f"cnnkernels: {path} moved to {bad}: {error}", stacklevel=2)
            path.replace(bad)
            entries = {}
        head = {"schema": SCHEMA, "gpu": path.stem, "torch": torch.__version__}
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted({**entries, **new}.items())]
        content = json.dumps(head)[:-1] + ',\n"entries": {\n' + ",\n".join(lines) + "\n}}\n"
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return path
