"""The measured table: (op, shape, dtype, GPU) → which implementation ran fastest, with its config.

``configs/<GPU>.json`` ships with the package. A file that is damaged or of another schema is
reported once and ignored: the rule decides then.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from pathlib import Path

import torch

SCHEMA = 1
CONFIGS = Path(__file__).resolve().parent / "configs"


def device_name(device: torch.device) -> str:
    """The file name of a device's table: "NVIDIA_H100_80GB_HBM3", or "cpu"."""
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^A-Za-z0-9]+", "_", torch.cuda.get_device_name(device)).strip("_")


@functools.cache
def _table(path: Path) -> dict[str, dict]:
    try:
        content = json.loads(path.read_text())
        if content.get("schema") != SCHEMA:
            raise ValueError(f"schema {content.get('schema')!r}, this version reads {SCHEMA}")
        return content["entries"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        warnings.warn(f"cnnkernels: tuning table {path} ignored: {error}", stacklevel=2)
        return {}


def lookup(key: str, device: torch.device) -> dict | None:
    """The entry {"impl": name, "config": {...}} measured for ``key`` on this device, or None."""
    return _table_of(device).get(key)


@functools.cache
def _table_of(device: torch.device) -> dict[str, dict]:
    return _table(CONFIGS / f"{device_name(device)}.json")
