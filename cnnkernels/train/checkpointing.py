"""Activation checkpointing: blocks keep their input only, and run again in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def _still_batch_norm(block: nn.Module) -> Iterator[None]:
    """The second run of a block must not move batch norm's running averages a second time."""
    layers = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked -= 1


def checkpoint_blocks(model: nn.Module) -> int:
    """Checkpoint every child with parameters of the model's nn.Sequential containers (VGG's layers,
    ResNet's blocks), or each of the model's own children where it has none. Returns how many.

    Parameters, state_dict and results stay as they are.
    """
    containers = [m for m in model.children() if isinstance(m, nn.Sequential)] or [model]
    blocks = [
        child
        for container in containers
        for child in container.children()
        if any(p.requires_grad for p in child.parameters())
    ]
    for block in blocks:
        _wrap(block)
    return len(blocks)


def _wrap(block: nn.Module) -> None:
    forward = block.forward

    def checkpointed(*args, **kwargs):
        if not block.training:
            return forward(*args, **kwargs)
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _still_batch_norm(block)),
            **kwargs,
        )

    block.forward = checkpointed
