"""Branches written straight into the tensor that concatenates them.

The graph keeps its ``cat`` nodes, which say what is computed; this is the plan of where it lies. A
value that only one concatenation reads is written to its slice of that one's buffer, the others are
copied there. So nothing but the concatenation's readers ever sees the buffer, and each of its
channels is written once, before them.
"""

from __future__ import annotations

import torch
from torch import fx

from .net import Net, arguments, aten, is_image

NAME, KIND = "concat", "branches into concatenation"
SPLIT = "split"


class Places:
    """Where the values of a net's concatenations lie.

    slices: value → (concatenation, first channel, channels), for values that only it reads.
    owners: the concatenations that have such parts: {concatenation: [first channel of each part]}.
    splits: merged convolution → its first part, where that lies in a concatenation: one kernel then
        writes it there and the other parts to a tensor of their own.
    """

    def __init__(self, net: Net):
        self.slices: dict = {}
        self.owners: dict = {}
        for cat in net.calls(aten.cat.default) if NAME in net.optional else ():
            if not _fits(cat):
                continue
            alone = {p for p in cat.args[0] if len(p.users) == 1 and p.op == "call_function"}
            if 2 * sum(map(_channels, alone)) < _channels(cat):
                continue  # mostly copies, which torch.cat makes as well
            starts, at = self.owners.setdefault(cat, []), 0
            for part in cat.args[0]:
                if part in alone:
                    self.slices[part] = cat, at, _channels(part)
                starts.append(at)
                at += _channels(part)
        self.splits: dict = {}
        for part in self.slices if SPLIT in net.optional else ():
            if part.target == aten.slice.Tensor and part.args[1:3] == (1, 0):
                merged = part.args[0]
                sixteen = _channels(part) * part.meta["val"].dtype.itemsize % 16 == 0
                if sixteen and self.aligned(part) and all("part" in u.meta for u in merged.users):
                    self.splits[merged] = part

    def rest(self, cat: fx.Node) -> list[tuple]:
        """(value, first channel, channels) of the parts that are to be copied."""
        parts = zip(cat.args[0], self.owners[cat])
        return [(p, at, _channels(p)) for p, at in parts if p not in self.slices]

    def aligned(self, value: fx.Node) -> bool:
        """Whether TMA can write the value's slice: it and each pixel start at 16 bytes."""
        cat, start, _ = self.slices[value]
        size = value.meta["val"].dtype.itemsize
        return not start * size % 16 and not _channels(cat) * size % 16


def _channels(node: fx.Node) -> int:
    return node.meta["val"].shape[1]


def _fits(cat: fx.Node) -> bool:
    """A concatenation of different images of one dtype along the channels."""
    parts, dim = arguments(cat)
    return (
        dim in (1, -3)
        and is_image(cat)
        and len(set(parts)) == len(parts) > 1
        and all(is_image(p) and p.target != aten.cat.default for p in parts)
        and all(p.meta["val"].dtype == cat.meta["val"].dtype for p in parts)
        and all(isinstance(_channels(p), int) and _channels(p) for p in parts)
    )


def narrow(start: int, size: int):
    """A function that gives these channels of a tensor."""
    return lambda tensor: tensor.narrow(1, start, size)


def into_slice(place: tuple, node: fx.Node, fn):
    """A function (buffer, *args) that runs ``node``, plainly ``fn(*args)``, into its slice."""
    _, start, size = place
    before_relu = getattr(fn, "before_relu", None)
    into = getattr(fn, "into", None)

    def run(buffer, *args, **kwargs):
        out = buffer.narrow(1, start, size)
        if into is not None:
            into(buffer, start, *args)
        elif before_relu is not None:
            torch.clamp_min(before_relu(*args), 0, out=out)
        elif node.target in (aten.relu.default, aten.relu_.default):
            torch.clamp_min(*args, 0, out=out)
        else:
            out.copy_(fn(*args, **kwargs))
        return out

    return run


def fill(rest: list[tuple]):
    """A function (buffer, *values) that copies the other parts and returns the buffer."""
    places = [(start, size) for _, start, size in rest]

    def run(buffer, *values):
        for value, (start, size) in zip(values, places):
            buffer.narrow(1, start, size).copy_(value)
        return buffer

    return run
