"""Backward of relu(x + bias): the ReLU's mask and the bias's gradient in one pass over memory, for the
convolution ops. Both follow from the ReLU's output, so nothing more is kept for it.

There is no CPU kernel: oneDNN sums the bias's gradient within its weight gradient, at no cost.
"""

from __future__ import annotations

import torch

from . import _args
from ._op import OPS, Impl, define


def _reference(grad: torch.Tensor, output: torch.Tensor):
    grad = torch.ops.aten.threshold_backward.default(grad, output, 0)
    return _args.laid_out(grad, output), grad.sum((0, 2, 3))


def _cuda(grad: torch.Tensor, output: torch.Tensor):
    output = _args.dense(output)
    leaf = torch.ops.cnnkernels._relu_bias_backward_cuda
    dx, dbias = leaf(_args.in_format_of(grad, output), output)
    return _args.laid_out(dx, output), dbias


def _cuda_why_not(grad: torch.Tensor, output: torch.Tensor) -> str | None:
    if not 0 < grad.numel() < 2**31:
        return "the kernel takes 1 to 2^31 - 1 elements"
    return _args.leaf_why_not("_relu_bias_backward_cuda", grad)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward(ctx, grad_dx, grad_dbias):
    # Linear in grad: its derivative is the mask of what comes in, the bias's spread over its channel.
    (output,) = ctx.saved_tensors
    grad = grad_dx + grad_dbias.view(1, -1, 1, 1)
    return torch.ops.aten.threshold_backward.default(grad, output, 0), None


define(
    "_relu_bias_backward(Tensor grad, Tensor output) -> (Tensor, Tensor)",
    impls=[
        Impl("cuda", _cuda, _cuda_why_not, default=False),
        Impl("reference", _reference, _args.always),
    ],
    fake=lambda grad, output: (
        _args.empty(output.shape, output),
        grad.new_empty(output.shape[1]),
    ),
    setup_context=_setup_context,
    backward=_backward,
)


def masked(grad: torch.Tensor, output: torch.Tensor, bias: bool):
    """(grad where the ReLU was open; the bias's gradient, or None: left to the convolution's).

    Until the kernel is a default, GPUs take torch's own ops, which torch.compile fuses.
    """
    if bias and grad.is_cuda and OPS["_relu_bias_backward"].impls["cuda"].default:
        return torch.ops.cnnkernels._relu_bias_backward(grad, output)
    return torch.ops.aten.threshold_backward.default(grad, output, 0), None
