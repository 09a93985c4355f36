"""How much memory autograd keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch


def saved_bytes(fn: Callable[[], object]) -> int:
    """Run ``fn`` and return the bytes autograd saved for backward; a storage saved twice counts
    once, at its largest saved part."""
    sizes: dict[int, int] = {}
    kept = []  # alive, so that no address is used twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        key = t.untyped_storage().data_ptr()
        sizes[key] = max(sizes.get(key, 0), t.numel() * t.element_size())
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept.append(fn())
    return sum(sizes.values())
