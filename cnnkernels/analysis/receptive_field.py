"""What one element of a layer's output sees of the input: arithmetic on kernel, stride and dilation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

Pair = tuple[int, int]


@dataclass(frozen=True)
class Field:
    """The region of the input behind one output element, and the way there.

    size: height and width of the region, in input pixels, as if the input had no edge.
    jump: input pixels between the regions of neighbouring elements (the product of strides).
    depth: layers with weights (convolutions and linear layers) on the longest path so far.
    """

    size: Pair = (1, 1)
    jump: Pair = (1, 1)
    depth: int = 0

    def through(self, kernel: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> Field:
        """Behind a window: it adds (effective kernel − 1) · jump pixels."""
        size = tuple(
            s + d * (k - 1) * j for s, k, d, j in zip(self.size, kernel, dilation, self.jump)
        )
        jump = tuple(j * s for j, s in zip(self.jump, stride))
        return replace(self, size=size, jump=jump)

    def over(self, sides: Pair) -> Field:
        """Behind a layer that sees a whole map of these sides."""
        return self.through(sides)

    def deeper(self) -> Field:
        """Behind one more layer with weights."""
        return replace(self, depth=self.depth + 1)


def join(fields: Iterable[Field]) -> Field:
    """Where branches meet: the widest region, the longest path."""
    fields = list(fields) or [Field()]
    return Field(
        size=tuple(max(f.size[i] for f in fields) for i in (0, 1)),
        jump=tuple(max(f.jump[i] for f in fields) for i in (0, 1)),
        depth=max(f.depth for f in fields),
    )


def stacked(kernels: Iterable[int]) -> int:
    """The field of convolutions of these kernel sizes, stride 1, one after another."""
    field = Field()
    for kernel in kernels:
        field = field.through((kernel, kernel))
    return field.size[0]
