"""conv2d_projection_add_relu: the end of a residual block whose shortcut is a projection (He et al.
2015, option B) in one kernel. The projection is a 1x1 convolution of another tensor, so its channels
are more terms of the same sums: one matrix product over both, and no shortcut tensor in memory.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import conv_flop_count

from .. import _lib
from . import _args, _conv2d
from ._conv2d_formulas import gradients
from ._op import Impl, define
from .conv2d import CONV2D, CONV2D_ADD_RELU

_ONE, _NONE = [1, 1], [0, 0]


def _check(x, weight, z, projection, bias, stride, padding, dilation, shortcut_stride) -> tuple:
    _args.check_input(x, dims=(4,))
    for t, name in ((z, "shortcut_input"), (projection, "shortcut_weight")):
        _args.check_input(t, name, dims=(4,))
        _args.check_same(x, t, name, shape=False)
    *pairs, _ = _conv2d.check(x, weight, bias, None, stride, padding, dilation, 1)
    shape = _conv2d.output_shape(x, weight, *pairs)
    shortcut_stride = _args.pair(shortcut_stride, "shortcut_stride", 1)
    wanted = [weight.shape[0], z.shape[1], 1, 1]
    if list(projection.shape) != wanted:
        raise ValueError(f"shortcut_weight has shape {list(projection.shape)}; it must be {wanted}")
    sizes = ((n - 1) // s + 1 for n, s in zip(z.shape[2:], shortcut_stride))
    given = [z.shape[0], shape[1], *sizes]
    if given != shape or min(z.shape[1:]) < 1:
        raise ValueError(
            f"shortcut_input has shape {list(z.shape)}; with shortcut_stride={shortcut_stride} its"
            f" projection is {given}, and the convolution's output {shape}"
        )
    return *pairs, shortcut_stride


def _chain(x, weight, z, projection, bias, stride, padding, dilation, shortcut_stride):
    """The projection, then the convolution with a residual: two ops, each with its own choice."""
    residual = CONV2D(z, projection, None, shortcut_stride, _NONE, _ONE, 1)
    return CONV2D_ADD_RELU(x, weight, residual, bias, stride, padding, dilation, 1)


def _fused_why_not(x, weight, z, projection, bias, stride, padding, dilation, shortcut_stride):
    if not _lib.has_leaf("_conv2d_projection_cuda"):
        return _args.leaf_why_not("_conv2d_projection_cuda", x)
    if _args.memory_format(z) != torch.channels_last:
        return "the kernel takes a channels_last shortcut_input"
    return _conv2d.cuda_why_not(
        x, weight, bias, None, stride, padding, dilation, 1, True,
        shortcut=(*z.shape[1:], *shortcut_stride),
    )  # fmt: skip


def _fused(x, weight, z, projection, bias, stride, padding, dilation, shortcut_stride):
    if x.shape[0] == 0:
        return _fake(x, weight, z, projection, bias, stride, padding, dilation, shortcut_stride)
    pairs = stride, padding, dilation, shortcut_stride
    return torch.ops.cnnkernels._conv2d_projection_cuda(
        _conv2d.readable(x), weight, _conv2d.readable(z), projection, bias, *pairs, True, ""
    )


def _fake(x, weight, z, projection, bias, stride, padding, dilation, shortcut_stride):
    return _conv2d.empty(x, _conv2d.output_shape(x, weight, stride, padding, dilation))


def _setup_context(ctx, inputs, output):
    x, weight, z, projection, bias, *ctx.geometry = inputs
    ctx.bias_sizes = None if bias is None else list(bias.shape)
    ctx.save_for_backward(x, weight, z, projection, output)


def _backward(ctx, grad):
    x, weight, z, projection, out = ctx.saved_tensors
    *pairs, shortcut_stride = ctx.geometry
    need = ctx.needs_input_grad
    needs = need[0], need[1], need[4]
    grad, first = gradients(grad, x, weight, ctx.bias_sizes, (*pairs, 1), needs, out)
    geometry = shortcut_stride, _NONE, _ONE, 1
    second = gradients(grad, z, projection, None, geometry, (need[2], need[3], False))[1]
    return *first[:2], *second[:2], first[2], None, None, None, None


def _flops(x_shape, w_shape, z_shape, projection_shape, *args, out_shape=None, **kwargs) -> int:
    """Both convolutions' and the addition of their outputs, as the two ops count them."""
    return (
        conv_flop_count(x_shape, w_shape, out_shape)
        + conv_flop_count(z_shape, projection_shape, out_shape)
        + torch.Size(out_shape).numel()
    )


_OP = define(
    "conv2d_projection_add_relu(Tensor input, Tensor weight, Tensor shortcut_input,"
    " Tensor shortcut_weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0,"
    " SymInt[2] dilation=1, SymInt[2] shortcut_stride=1) -> Tensor",
    impls=[
        Impl("cuda", _fused, _fused_why_not, default=False),
        Impl("reference", _chain, _args.always),
    ],
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast="lower",
    flops=_flops,
)


def conv2d_projection_add_relu(
    input, weight, shortcut_input, shortcut_weight,
    bias=None, stride=1, padding=0, dilation=1, shortcut_stride=1,
):  # fmt: skip
    """``relu(conv2d(input, weight, bias, stride, padding, dilation) + conv2d(shortcut_input,
    shortcut_weight, stride=shortcut_stride))``: the end of a residual block whose shortcut is a
    projection (He et al. 2015, option B).

    Args:
        input: [N, C, H, W]; float64 (reference), float32, float16 or bfloat16.
        weight: [K, C, R, S]. bias: [K] or None, the sum of both convolutions' biases.
        shortcut_input: [N, C2, H2, W2] such that (H2 − 1) // shortcut_stride + 1 is the output's
            height, likewise its width. shortcut_weight: [K, C2, 1, 1].
        stride, padding, dilation, shortcut_stride: an int or a pair (height, width).

    Returns [N, K, P, Q] in the input's memory format. The fused kernel sums both in fp32 and rounds
    once; the two ops round the projection first. Raises TypeError or ValueError naming the argument,
    its value and what is allowed.
    """
    tensors = input, weight, shortcut_input, shortcut_weight, bias
    return _OP(*tensors, stride, padding, dilation, shortcut_stride)
