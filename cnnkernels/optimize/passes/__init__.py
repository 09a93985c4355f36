"""The rewrites, one file each, and the order in which they run.

A pass is ``run(net)``: it finds chains in ``net.graph`` and calls ``net.replace``. The passes that
match longer chains run first.
"""

from __future__ import annotations

from collections.abc import Collection

# Off unless asked for: on a CPU they gain nothing (docs/optimize.md), and no GPU has run the kernels
# behind them in these forms yet.
OPTIONAL = {
    "merge": "convolutions of one input with one geometry become one",
    "concat": "branches are written into the tensor that concatenates them",
    "split": "with both, a merged convolution writes its first part there itself",
    "projection": "a projection shortcut is more terms of the block's last convolution",
    "pair": "a block's last convolution and the next block's first become one",
}


def all_passes():
    """The passes in order."""
    from . import (
        batch_norm,
        constants,
        conv,
        image,
        inplace,
        lrn,
        merge,
        pair,
        pool,
        projection,
        relu_pool,
        residual,
    )

    return [
        constants, batch_norm, lrn, projection, residual, relu_pool, conv, pool, image, merge, pair,
        inplace,
    ]  # fmt: skip


def apply(net, optional: Collection[str] = ()) -> None:
    """Run the passes over ``net``, of the optional ones those named, and note in its report what is
    left to PyTorch."""
    from . import left

    net.optional = frozenset(optional)
    for one in all_passes():
        one.run(net)
        net.clean()
    net.graph.lint()
    left.run(net)
