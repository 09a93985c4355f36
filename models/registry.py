"""The table of networks: every constructor is registered here once, by :func:`register`."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """One registered network."""

    name: str
    constructor: Callable[..., nn.Module]
    variants: tuple[str, ...]
    input_size: tuple[int, int, int]


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str,
    build: Callable[..., nn.Module],
    *,
    input_size: tuple[int, int, int],
    variants: Sequence[str] = ("paper",),
    doc: str,
) -> Callable[..., nn.Module]:
    """Register ``build(variant, **kwargs)`` as ``name`` and return its public constructor.

    The constructor takes ``variant`` (the first of ``variants`` by default), ``device``, ``dtype``
    and build's keywords. The network it returns carries ``name``, ``variant`` and ``input_size``
    (channels, height, width of one image).
    """

    def constructor(
        variant: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs,
    ) -> nn.Module:
        chosen = variants[0] if variant is None else variant
        if chosen not in variants:
            allowed = ", ".join(map(repr, variants))
            raise ValueError(f"variant of {name} is {chosen!r}; allowed are {allowed}")
        # Under a device context every parameter is made in place: on "meta" nothing is allocated.
        with torch.device(device) if device is not None else contextlib.nullcontext():
            model = build(chosen, **kwargs)
        model.name, model.variant = name, chosen
        if not hasattr(model, "input_size"):
            model.input_size = input_size
        return model if dtype is None else model.to(dtype)

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__module__ = build.__module__
    constructor.__doc__ = f"""{doc}

    Args:
        variant: one of {", ".join(map(repr, variants))}; the first is the default.
        device, dtype: where and as what the parameters are made; ``device="meta"`` allocates nothing.
        **kwargs: see :func:`{build.__module__}.{build.__name__}`.

    Input: [N, {", ".join(map(str, input_size))}].
    """
    _ENTRIES[name] = Entry(name, constructor, tuple(variants), input_size)
    return constructor


def entry(name: str) -> Entry:
    """The registered network ``name``; ValueError with the nearest names otherwise."""
    if name not in _ENTRIES:
        near = difflib.get_close_matches(str(name), _ENTRIES, n=3) or sorted(_ENTRIES)
        raise ValueError(
            f"name is {name!r}; no such model. Close are: {', '.join(near)} "
            "(list_models() gives all)"
        )
    return _ENTRIES[name]


def create(name: str, variant: str | None = None, **kwargs) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of :func:`list_models`.
        variant: "paper" (as published) or "torchvision" (loads torchvision's state_dict and gives
            its outputs); by default "paper" where there is one.
        **kwargs: the constructor's: ``device``, ``dtype``, ``num_classes``, …

    Raises ValueError naming an unknown ``name`` or ``variant`` and what is allowed.
    """
    return entry(name).constructor(variant, **kwargs)


def list_models(variant: str | None = None) -> list[str]:
    """Names of all networks, or of those that have ``variant``, in order of registration."""
    known = {v for e in _ENTRIES.values() for v in e.variants}
    if variant is not None and variant not in known:
        raise ValueError(f"variant is {variant!r}; allowed are {', '.join(sorted(known))}")
    return [e.name for e in _ENTRIES.values() if variant is None or variant in e.variants]
