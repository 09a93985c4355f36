"""replace_layers(): torch.nn modules swapped for this package's, for training."""

from __future__ import annotations

from torch import nn

from .. import nn as ours


def replace_layers(model: nn.Module) -> nn.Module:
    """Swap torch.nn layers of ``model`` for :mod:`cnnkernels.nn`'s, in place, and return it.

    Max-pooling, local response normalisation and ``AdaptiveAvgPool2d(1)`` are swapped wherever they
    are. Inside a ``torch.nn.Sequential``, where the order of calls is known, a convolution or LRN or
    max-pooling takes the ReLU beside it along and ``torch.nn.Identity`` keeps the ReLU's place.
    Parameters stay the same objects and state_dict names the same names; hooks stay, and a chain
    across a module with hooks is not fused, since a hook would see another value. Results are those
    of the replaced layers in training and evaluation.
    """
    uses = _uses(model)
    for module in list(model.modules()):
        if type(module) is nn.Sequential:
            _fuse_sequence(module, uses)
    for module in model.modules():
        _swap(module)
    return model


def _uses(model: nn.Module) -> dict[int, int]:
    """How often each module appears in the model, by id: a shared one is called elsewhere too."""
    count: dict[int, int] = {}
    for module in model.modules():
        for child in module._modules.values():
            if child is not None:
                count[id(child)] = count.get(id(child), 0) + 1
    return count


def _swap(module: nn.Module) -> None:
    """Change the class: parameters, hooks and the references to the object stay."""
    if type(module) is nn.MaxPool2d:
        module.__class__ = ours.MaxPool2d
    elif type(module) is nn.LocalResponseNorm:
        module.__class__ = ours.LocalResponseNorm
    elif type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        module.__class__ = ours.GlobalAvgPool2d


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _fuse_sequence(sequence: nn.Sequential, uses: dict[int, int]) -> None:
    names = list(sequence._modules)
    for i, name in enumerate(names):
        relu = sequence._modules[name]
        if type(relu) is not nn.ReLU or _hooked(relu):
            continue
        before = sequence._modules[names[i - 1]] if i else None
        after = sequence._modules[names[i + 1]] if i + 1 < len(names) else None

        def alone(module, kind) -> bool:
            return type(module) is kind and not _hooked(module) and uses[id(module)] == 1

        if alone(after, nn.LocalResponseNorm):
            after.__class__ = ours.ReLULRN
        elif alone(before, nn.Conv2d):
            before.__class__ = ours.Conv2dReLU
        elif alone(after, nn.MaxPool2d) and not after.return_indices:
            after.__class__ = ours.ReLUMaxPool2d
        else:
            continue
        sequence._modules[name] = nn.Identity().train(relu.training)
