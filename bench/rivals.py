"""What a speed-up is measured against: the same network in torch's own ops, and torch.compile."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import nn as ours


class _ConvReLU(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu_()


class _ConvAddReLU(nn.Conv2d):
    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        return torch.add(super().forward(input), residual).relu_()


class _ConvReLUMaxPool(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(
            super().forward(input).relu_(), self.pool_kernel_size, self.pool_stride,
            self.pool_padding, self.pool_dilation, self.ceil_mode,
        )  # fmt: skip


class _ReLUMaxPool(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.relu(input))


class _ReLULRN(nn.LocalResponseNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.relu(input))


class _ReLULRNMaxPool(nn.LocalResponseNorm):
    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(
            super().forward(F.relu(input)), self.kernel_size, self.stride, self.padding,
            self.dilation, self.ceil_mode,
        )  # fmt: skip


class _AddReLU(nn.Module):
    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        return torch.add(input, residual).relu_()


# Our layer → the same computation in torch's own ops, on the same attributes and parameters.
TWINS: dict[type, type] = {
    ours.Conv2dReLU: _ConvReLU,
    ours.Conv2dAddReLU: _ConvAddReLU,
    ours.Conv2dReLUMaxPool2d: _ConvReLUMaxPool,
    ours.MaxPool2d: nn.MaxPool2d,
    ours.ReLUMaxPool2d: _ReLUMaxPool,
    ours.LocalResponseNorm: nn.LocalResponseNorm,
    ours.ReLULRN: _ReLULRN,
    ours.ReLULRNMaxPool2d: _ReLULRNMaxPool,
    ours.AddReLU: _AddReLU,
    ours.GlobalAvgPool2d: nn.AdaptiveAvgPool2d,
}


def eager_twin(model: nn.Module) -> nn.Module:
    """A copy of a network, parameters included, in which torch's own ops stand for ours."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if type(module).__module__ == ours.__name__:
            if type(module) not in TWINS:
                raise TypeError(f"{type(module).__name__} has no counterpart in torch's own ops")
            module.__class__ = TWINS[type(module)]
    return twin


def optimizer() -> Callable[..., nn.Module] | None:
    """``cnnkernels.optimize``, or None in a build without it."""
    if importlib.util.find_spec("cnnkernels.optimize") is None:
        return None
    return importlib.import_module("cnnkernels.optimize").optimize


# --- torch.compile ---------------------------------------------------------------------------

# "frozen" is max-autotune with the weights as constants (inductor's freezing).
COMPILE_MODES = ("default", "max-autotune", "frozen")


def compiled(fn: Callable, mode: str = "default", graphs: bool = False) -> Callable:
    """torch.compile's version of a function or module, compiled at its first call.

    graphs: let max-autotune use CUDA graphs. They copy their inputs, which a network hardly notices
    and a single layer does.
    """
    torch._dynamo.reset()
    if mode == "default":
        return torch.compile(fn, dynamic=False)
    name = "max-autotune" if graphs else "max-autotune-no-cudagraphs"
    options = dict(torch._inductor.list_mode_options(name))
    run = torch.compile(fn, dynamic=False, options=options)
    if mode != "frozen":
        return run
    done = False

    def first_frozen(*inputs):
        # Not in the options: tracing decides by the global setting whether weights are constants.
        nonlocal done
        if done:
            return run(*inputs)
        with torch._inductor.config.patch(freezing=True):
            out = run(*inputs)
        done = True
        return out

    return first_frozen
