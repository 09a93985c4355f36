"""What every convolution op needs beside its kernels: its gradients and its FLOPs."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import conv_flop_count

from . import _args, _conv2d
from .relu_bias import masked


def gradients(grad, x, weight, bias_sizes, geometry, needs, relu_output=None):
    """(grad behind the ReLU, [gradients of x, weight and bias; None where not in ``needs``]).

    relu_output: the output where a ReLU follows; it tells where that was open.
    """
    stride, padding, dilation, groups = geometry
    mask = [*needs[:2], bias_sizes is not None and needs[2]]
    bias_grad = None
    if relu_output is not None:
        grad, bias_grad = masked(grad, relu_output, mask[2])
        mask[2] = mask[2] and bias_grad is None
    found = (None, None, None)
    if any(mask):
        found = torch.ops.aten.convolution_backward.default(
            grad, x, weight, bias_sizes, stride, padding, dilation, False, [0, 0], groups, mask
        )
    found = [g if wanted else None for g, wanted in zip(found, mask)]
    if bias_grad is not None:
        found[2] = bias_grad
    return grad, found


def pooled_gradient(grad, y, window):
    """The gradient of ``y`` behind max_pool2d(y, *window)."""
    aten = torch.ops.aten
    indices = aten.max_pool2d_with_indices.default(y, *window)[1]
    return aten.max_pool2d_with_indices_backward.default(grad, y, *window, indices)


def flops_before_pool(x_shape, w_shape, stride=1, padding=0, dilation=1) -> int:
    """A convolution's FLOPs where only the pooled output is known; comparisons are not counted."""
    x, weight = (torch.empty(shape, device="meta") for shape in (x_shape, w_shape))
    pairs = [_args.pair(value, "", 0) for value in (stride, padding, dilation)]
    return conv_flop_count(x_shape, w_shape, _conv2d.output_shape(x, weight, *pairs))
