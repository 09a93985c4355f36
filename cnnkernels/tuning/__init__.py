"""The measured table: (op, shape, dtype, layout, device) → the fastest implementation, its config.

A table is one JSON file per device, the same format for the ones that ship with the package
(``configs/<device>.json``) and a user's own (``<user cache>/tuning/<device>.json``, written by
``cnnkernels tune``), whose entries win::

    {"schema": 1, "gpu": "NVIDIA_H100_80GB_HBM3", "torch": "2.11.0", "triton": "3.6.0",
     "entries": {KEY: {"impl": "triton", "config": {...}, "us": 26.9, "error": 1.7e-3}}}

``gpu`` is :func:`device_name`. Of an entry only ``impl`` (a backend's name) is required; ``config``
is what that implementation takes as ``config=`` ("cuda": {"instance": name}).

Keys: ``OP/DTYPE/LAYOUT/SHAPE``. A convolution's are made by :func:`conv_key`, e.g.
``conv2d/bfloat16/nhwc/64x256x56x56-k64-r1s1-s1-p0-d1-g1-add-relu``: N x C x H x W of the input, k
output channels, r s filter size, s stride, p padding, d dilation (``s2x1`` where height and width
differ), g groups, then ``-add`` with a residual and ``-relu`` with a ReLU. DTYPE is ``tf32`` for
float32 where TF32 is allowed on a GPU. Every other op's are made by :func:`op_key` from its
arguments, e.g. ``max_pool2d/float32/nchw/64x64x112x112-kernel_size=3-stride=2-padding=1-dilation=1``.

A forward pass only looks up: it never tunes, and a table that is damaged, of another device or of
another schema is reported once and ignored.
"""

from __future__ import annotations

import functools

import torch

from .keys import conv_key, nearest, op_key
from .tables import CONFIGS, SCHEMA, _table, device_name, save, user_table

__all__ = [
    "CONFIGS",
    "SCHEMA",
    "conv_key",
    "device_name",
    "entries",
    "lookup",
    "op_key",
    "save",
    "user_table",
]


@functools.lru_cache(maxsize=4096)
def lookup(key: str, device: torch.device) -> dict | None:
    """The entry for ``key`` on this device: measured, or that of the nearest measured shape (then
    with "nearest": its key), or None."""
    table = entries(device)
    if key in table:
        return table[key]
    other = nearest(key, table)
    if other is None:
        return None
    entry = {**table[other], "nearest": other}
    if entry["impl"] == "cuda":
        entry.pop("config", None)  # an instance fits its shape; the planner picks for another
    return entry


@functools.cache
def entries(device: torch.device) -> dict[str, dict]:
    """The device's whole table, the user's entries over the shipped ones."""
    name = device_name(device)
    return {**_table(CONFIGS / f"{name}.json"), **_table(user_table(device))}


_generation = 0


def generation() -> int:
    """A number that changes when the tables are read anew: decisions made before it are stale."""
    return _generation


def forget() -> None:
    """Read the tables again at the next lookup (after one was written)."""
    global _generation
    _generation += 1
    for cache in (lookup, entries, _table):
        cache.cache_clear()
