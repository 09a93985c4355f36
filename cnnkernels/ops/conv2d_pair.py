"""conv2d_add_relu_conv2d_relu: the seam of two residual bottlenecks (He et al. 2015, figure 5) in one
kernel. The 1x1 expansion with residual and ReLU, and the next block's 1x1 reduction with ReLU, which
cuDNN can only run one after the other, reading the widest tensor of the network back in between.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import conv_flop_count

from .._triton import conv2d_pair as _triton
from ..tuning import space
from . import _args, _conv2d
from ._conv2d_formulas import gradients
from ._op import Impl, define
from .conv2d import CONV2D_ADD_RELU, CONV2D_RELU

_ONE, _NONE = [1, 1], [0, 0]

# H100, batch 64, bfloat16, against cuDNN's two fused ops: 1.48x at C = 64 (56 x 56), 1.20x at 128
# (28 x 28), but 0.80x at 256 (14 x 14): why is in docs/kernels/conv2d_triton.md.
FASTEST_CHANNELS = 128
SMALLEST_TILE = 64  # pixels


def _check(x, weight, residual, next_weight, bias, next_bias) -> tuple:
    _args.check_input(x, dims=(4,))
    for w, name in ((weight, "weight"), (next_weight, "next_weight")):
        _args.check_input(w, name, dims=(4,))
        if list(w.shape[2:]) != [1, 1]:
            raise ValueError(f"{name} has shape {list(w.shape)}; it must be 1x1")
    _conv2d.check(x, weight, bias, residual, _ONE, _NONE, _ONE, 1)
    _args.check_same(x, next_weight, "next_weight", shape=False)
    k1, k2 = weight.shape[0], next_weight.shape[0]
    if next_weight.shape[1] != k1:
        raise ValueError(
            f"next_weight has shape {list(next_weight.shape)}; it must take {k1} channels"
        )
    if next_bias is not None:
        _args.check_same(x, next_bias, "next_bias", shape=False)
        if list(next_bias.shape) != [k2]:
            raise ValueError(f"next_bias has shape {list(next_bias.shape)}; it must be [{k2}]")
    return ()


def _chain(x, weight, residual, next_weight, bias, next_bias):
    """The two ops one after the other, each with its own choice."""
    geometry = _ONE, _NONE, _ONE, 1
    y = CONV2D_ADD_RELU(x, weight, residual, bias, *geometry)
    return y, CONV2D_RELU(y, next_weight, next_bias, *geometry)


def _fused_why_not(x, weight, residual, next_weight, bias, next_bias):
    reason = _args.triton_why_not(x)
    if reason is not None:
        return reason
    if _args.memory_format(x) != torch.channels_last or x.shape[0] == 0:
        return "the fused pair takes channels_last images, at least one"
    if x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32:
        return "float32 runs in TF32, and torch.backends.cudnn.allow_tf32 is False"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device)[0] < 9:
        return "the fused pair needs TMA (sm_90)"
    sizes = x.shape[1], weight.shape[0], next_weight.shape[0]
    return channels_why_not(*sizes, x.element_size())


def channels_why_not(c: int, k1: int, k2: int, element_size: int) -> str | None:
    """Why the fused kernel has no tile for these channels, or None."""
    reason = _triton.pair_why_not(c, k1, k2)
    if reason is None and not space.pair_configs(c, k1, k2, element_size):
        reason = f"channels {c}, {k1}, {k2} need more shared memory than a block has"
    return reason


def _fused_held_back(x, weight, residual, next_weight, bias, next_bias):
    if max(x.shape[1], next_weight.shape[0]) > FASTEST_CHANNELS:
        return f"from {2 * FASTEST_CHANNELS} channels on, the two ops are faster"
    multiprocessors = 132
    if x.device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(x.device).multi_processor_count
    tiles = -(-x.shape[0] * x.shape[2] * x.shape[3] // SMALLEST_TILE)
    if tiles < multiprocessors:  # the two ops split their channels among them too
        return f"{tiles} tiles for {multiprocessors} multiprocessors: not measured"
    return None


def _fused_configs(x, weight, residual, next_weight, bias, next_bias):
    sizes = x.shape[1], weight.shape[0], next_weight.shape[0]
    return space.pair_configs(*sizes, x.element_size())


def _fused(x, weight, residual, next_weight, bias, next_bias, config=None):
    (n, c, h, w), k1, k2 = x.shape, weight.shape[0], next_weight.shape[0]

    def rows(t):  # [N, C, H, W] in NHWC memory as [N * H * W, C], aligned to 16 bytes
        t = t.contiguous(memory_format=torch.channels_last)
        t = t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])
        return t if t.data_ptr() % 16 == 0 else t.clone()

    tf32 = x.device.type == "cuda" and x.dtype == torch.float32
    y, z = _triton.conv2d_pair(
        rows(x), weight.reshape(k1, c).contiguous(), bias, rows(residual),
        next_weight.reshape(k2, k1).contiguous(), next_bias,
        precision="tf32" if tf32 else "ieee",
        config=config or space.pair_configs(c, k1, k2, x.element_size())[0],
    )  # fmt: skip
    return tuple(t.view(n, h, w, -1).permute(0, 3, 1, 2) for t in (y, z))


def _fake(x, weight, residual, next_weight, bias, next_bias):
    n, _, h, w = x.shape
    return tuple(_conv2d.empty(x, [n, k.shape[0], h, w]) for k in (weight, next_weight))


def _setup_context(ctx, inputs, output):
    x, weight, _, next_weight, bias, next_bias = inputs
    ctx.save_for_backward(x, weight, next_weight, *output)
    ctx.biases = bias is not None, next_bias is not None


def _backward(ctx, grad_y, grad_z):
    x, weight, next_weight, y, z = ctx.saved_tensors
    need_x, need_w, need_residual, need_next, need_b, need_next_b = ctx.needs_input_grad
    geometry = _ONE, _NONE, _ONE, 1
    sizes, next_sizes = (
        [w.shape[0]] if has_bias else None for w, has_bias in zip((weight, next_weight), ctx.biases)
    )
    needs = True, need_next, need_next_b
    _, (back, *next_grads) = gradients(grad_z, y, next_weight, next_sizes, geometry, needs, z)
    needs = need_x, need_w, need_b
    grad_y, grads = gradients(grad_y + back, x, weight, sizes, geometry, needs, y)
    grad_x, grad_w, grad_b = grads
    grad_next, grad_next_b = next_grads
    return grad_x, grad_w, grad_y if need_residual else None, grad_next, grad_b, grad_next_b


def _flops(x_shape, w_shape, residual_shape, next_shape, *args, out_shape=None, **kwargs) -> int:
    """Both convolutions' and the residual's additions, as the two ops count them."""
    first, second = out_shape
    return (
        conv_flop_count(x_shape, w_shape, first)
        + conv_flop_count(first, next_shape, second)
        + torch.Size(first).numel()
    )


_OP = define(
    "conv2d_add_relu_conv2d_relu(Tensor input, Tensor weight, Tensor residual, Tensor next_weight,"
    " Tensor? bias=None, Tensor? next_bias=None) -> (Tensor, Tensor)",
    impls=[
        Impl("triton", _fused, _fused_why_not, configs=_fused_configs, held_back=_fused_held_back),
        Impl("reference", _chain, _args.always),
    ],
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast="lower",
    flops=_flops,
)


def conv2d_add_relu_conv2d_relu(input, weight, residual, next_weight, bias=None, next_bias=None):
    """``y = relu(conv2d(input, weight, bias) + residual)`` and ``z = relu(conv2d(y, next_weight,
    next_bias))``, both 1x1 with stride 1, in one kernel where one fits.

    Args:
        input: [N, C, H, W]; float64 (reference), float32, float16 or bfloat16. The fused kernel
            takes channels_last, C and K2 powers of two up to 128, K1 a multiple of 64.
        weight: [K1, C, 1, 1]. residual: [N, K1, H, W]. next_weight: [K2, K1, 1, 1].
        bias: [K1] or None. next_bias: [K2] or None.

    Returns (y [N, K1, H, W], z [N, K2, H, W]) in the input's memory format; z is computed from y as
    rounded. Raises TypeError or ValueError naming the argument, its value and what is allowed.
    """
    return _OP(input, weight, residual, next_weight, bias, next_bias)
