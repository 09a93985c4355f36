"""The rewrites, one file each, and the order in which they run.

A pass is ``run(net)``: it finds chains in ``net.graph`` and calls ``net.replace``. The passes that
match longer chains run first.
"""

from __future__ import annotations


def all_passes():
    """The passes in order."""
    from . import (
        batch_norm,
        constants,
        conv,
        inplace,
        lrn,
        pool,
        relu_pool,
        residual,
    )

    return [constants, batch_norm, lrn, residual, relu_pool, conv, pool, inplace]


def apply(net, passes=None) -> None:
    """Run the passes over ``net`` and note in its report what is left to PyTorch."""
    from . import left

    for one in all_passes() if passes is None else passes:
        one.run(net)
        net.clean()
    net.graph.lint()
    left.run(net)
