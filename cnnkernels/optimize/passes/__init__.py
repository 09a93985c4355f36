"""The rewrites, one file each, and the order in which they run.

A pass is ``run(net)``: it finds chains in ``net.graph`` and calls ``net.replace``. The passes that
match longer chains run first.
"""

from __future__ import annotations

from collections.abc import Collection

OPTIONAL = {
    "merge": "convolutions of one input with one geometry become one",
    "concat": "branches are written into the tensor that concatenates them",
    "projection": "a projection shortcut is more terms of the block's last convolution",
}
# On a GPU none: no GPU has run the kernels behind them in these forms yet. On a CPU those that were
# measured to be faster; its convolutions can't take a projection along.
DEFAULT = {"cpu": frozenset({"merge", "concat"}), "cuda": frozenset()}


def all_passes():
    """The passes in order."""
    from . import (
        batch_norm,
        constants,
        conv,
        inplace,
        lrn,
        merge,
        pool,
        projection,
        relu_pool,
        residual,
    )

    return [
        constants, batch_norm, lrn, projection, residual, relu_pool, conv, pool, merge, inplace,
    ]  # fmt: skip


def apply(net, optional: Collection[str] | None = None) -> None:
    """Run the passes over ``net``, of the optional ones those named (None: the device's default),
    and note in its report what is left to PyTorch."""
    from . import left

    net.optional = DEFAULT[net.device.type] if optional is None else frozenset(optional)
    for one in all_passes():
        one.run(net)
        net.clean()
    net.graph.lint()
    left.run(net)
