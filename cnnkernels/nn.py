"""Layers on the ops of this package: constructor arguments, parameters and state_dict names of torch.nn's.

A fused layer stands for a chain of torch.nn layers and has the parameters of the one layer in the
chain that has any, so the weights of the chain load into it. Inputs are [N, C, H, W], or [C, H, W]
where torch.nn's layers take that too (LRN normalises over dimension 1, as torch.nn's).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from . import ops

__all__ = [
    "AddReLU",
    "Conv2dAddReLU",
    "Conv2dReLU",
    "Conv2dReLUMaxPool2d",
    "GlobalAvgPool2d",
    "LocalResponseNorm",
    "MaxPool2d",
    "ReLULRN",
    "ReLULRNMaxPool2d",
    "ReLUMaxPool2d",
]


def _padded(conv: nn.Conv2d, input: Tensor) -> tuple[Tensor, str | int | tuple[int, ...]]:
    """The input and the padding the op still has to add: none where padding_mode isn't "zeros"."""
    if conv.padding_mode == "zeros":
        return input, conv.padding
    return F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0


class Conv2dReLU(nn.Conv2d):
    """``torch.nn.Conv2d`` followed by ReLU, in one kernel."""

    def forward(self, input: Tensor) -> Tensor:
        x, padding = _padded(self, input)
        return ops.conv2d_relu(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv2dAddReLU(nn.Conv2d):
    """``relu(conv(input) + residual)``: a residual block's last convolution; two inputs."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        x, padding = _padded(self, input)
        return ops.conv2d_add_relu(
            x, self.weight, residual, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv2dReLUMaxPool2d(nn.Conv2d):
    """``torch.nn.Conv2d`` → ReLU → ``torch.nn.MaxPool2d``; the pool's arguments are keywords."""

    def __init__(
        self, *args, pool_kernel_size=2, pool_stride=None, pool_padding=0, pool_dilation=1,
        ceil_mode=False, **kwargs,
    ):  # fmt: skip
        super().__init__(*args, **kwargs)
        self.pool_kernel_size, self.pool_stride = pool_kernel_size, pool_stride
        self.pool_padding, self.pool_dilation = pool_padding, pool_dilation
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        x, padding = _padded(self, input)
        return ops.conv2d_relu_max_pool2d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
            self.pool_kernel_size, self.pool_stride, self.pool_padding, self.pool_dilation,
            self.ceil_mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pool_kernel_size={self.pool_kernel_size}, pool_stride={self.pool_stride}"


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``."""

    def forward(self, input: Tensor):
        return ops.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices,
        )  # fmt: skip


class ReLUMaxPool2d(nn.MaxPool2d):
    """ReLU → ``torch.nn.MaxPool2d``; does not return indices."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.return_indices:
            raise ValueError("return_indices is True; ReLUMaxPool2d allows only False")

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu_max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )


class LocalResponseNorm(nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm``: alpha times the *mean* of squares over the window."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


class ReLULRN(nn.LocalResponseNorm):
    """ReLU → ``torch.nn.LocalResponseNorm``."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu_lrn(input, self.size, self.alpha, self.beta, self.k)


class ReLULRNMaxPool2d(nn.LocalResponseNorm):
    """ReLU → ``torch.nn.LocalResponseNorm`` → ``torch.nn.MaxPool2d``; the pool's arguments are keywords."""

    def __init__(
        self, *args, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        return ops.relu_lrn_max_pool2d(
            input, self.size, self.alpha, self.beta, self.k, self.kernel_size, self.stride,
            self.padding, self.dilation, self.ceil_mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}, stride={self.stride}"


class AddReLU(nn.Module):
    """``relu(input + residual)``: the end of a residual block; two inputs of one shape."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        return ops.add_relu(input, residual)


class GlobalAvgPool2d(nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d(1)``: the mean of each channel, [N, C, H, W] → [N, C, 1, 1]."""

    def __init__(self, output_size: int = 1):
        super().__init__(output_size)
        if output_size not in (1, (1, 1)):
            raise ValueError(f"output_size is {output_size!r}; GlobalAvgPool2d allows only 1")

    def forward(self, input: Tensor) -> Tensor:
        out = ops.global_avg_pool2d(input)
        return out if out.dim() == input.dim() else out[..., None, None]
