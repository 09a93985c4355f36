"""conv2d_image: a network's first convolution on an image in another dtype than the weights': float32 or
uint8, as a decoder leaves it. The stem kernels read such an image as it is, where a cast would be a
pass over memory of its own. conv2d, conv2d_relu and conv2d_relu_max_pool2d call it for such inputs.
"""

from __future__ import annotations

import torch

from .. import tuning
from . import _args, _conv2d, _pool
from . import _conv2d_stem as stem
from ._conv2d_formulas import flops_before_pool, gradients, pooled_gradient
from ._op import OPS, Impl, define

_ONES = [1, 1]
_POOLED = {"prefix": "pool_", "name": "the convolution's output"}
# The image's dtypes beside the weight's own.
IMAGES = {
    torch.float32: (torch.uint8,),
    torch.float16: (torch.float32, torch.uint8),
    torch.bfloat16: (torch.float32, torch.uint8),
}


def differs(input, weight) -> bool:
    """Whether this is an image in a dtype of its own. Under autocast floating ones are cast anyway."""
    return (
        isinstance(input, torch.Tensor)
        and isinstance(weight, torch.Tensor)
        and input.dim() in (3, 4)
        and input.shape[-3] == 3
        and input.dtype in IMAGES.get(weight.dtype, ())
        and not (input.is_floating_point() and torch.is_autocast_enabled(input.device.type))
    )


def window_of(pool: tuple) -> list[int] | None:
    """conv2d_image's ``pool`` for pooling arguments (kernel, stride, padding, dilation, ceil_mode), or
    None where it does not pool so."""
    if not pool:
        return []
    kernel, step, (pad, pad_w), spread = _pool.arguments(*pool[:-1], prefix="pool_")
    if (kernel, step, spread, pad_w) != ([3, 3], [2, 2], [1, 1], pad):
        return None
    return [pad, int(pool[-1])]


def _format(x, weight) -> torch.memory_format:
    """torch's rule for convolutions: channels_last when either operand is."""
    formats = _args.memory_format(x), _args.memory_format(weight)
    return torch.channels_last if torch.channels_last in formats else torch.contiguous_format


def _check(x, weight, bias, stride, padding, relu, pool) -> tuple:
    _args.check_input(weight, "weight", dims=(4,))
    allowed = (weight.dtype, *IMAGES.get(weight.dtype, ()))
    if x.dtype not in allowed:
        allowed = ", ".join(map(str, allowed))
        raise ValueError(f"input has dtype {x.dtype}; with a weight of {weight.dtype}: {allowed}")
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"input has shape {list(x.shape)}; an image is [N, 3, H, W]")
    if x.device != weight.device:
        raise ValueError(f"weight is on {weight.device}, but the input is on {x.device}")
    stride, padding, _ = _conv2d.check_geometry(x, weight, stride, padding, _ONES, 1)
    if len(pool) not in (0, 2):
        raise ValueError(f"pool is {list(pool)}; allowed are [] and [padding, ceil_mode]")
    _conv2d.check_operands(weight, weight, bias, None, _shape(x, weight, stride, padding, pool))
    return stride, padding, relu, pool


def _shape(x, weight, stride, padding, pool) -> list[int]:
    """The output's; ValueError when a window doesn't fit."""
    shape = _conv2d.output_shape(x, weight, stride, padding, _ONES)
    return _pool.out_shape(shape, *_window(pool), **_POOLED) if pool else shape


def _window(pool) -> tuple:
    """Kernel, stride, padding, dilation and ceil_mode of ``pool``."""
    return [3, 3], [2, 2], [pool[0]] * 2, _ONES, bool(pool[1])


def _chain(x, weight, bias, stride, padding, relu, pool):
    """Cast the image, then the ops for equal dtypes, each with its own choice."""
    x = x.to(weight.dtype).contiguous(memory_format=_format(x, weight))
    geometry = stride, padding, _ONES, 1
    if relu and pool:
        return OPS["conv2d_relu_max_pool2d"](x, weight, bias, *geometry, *_window(pool))
    out = OPS["conv2d_relu" if relu else "conv2d"](x, weight, bias, *geometry)
    return OPS["max_pool2d"](out, *_window(pool)) if pool else out


def _cuda_why_not(x, weight, bias, stride, padding, relu, pool) -> str | None:
    out = _format(x, weight)
    return stem.why_not(x, weight, None, stride, padding, _ONES, 1, tuple(pool), out)


def _cuda_held_back(x, weight, bias, stride, padding, relu, pool) -> str | None:
    args = x, weight, bias, stride, padding, relu, pool
    return None if _cuda_why_not(*args) else stem.unverified(x, weight, bool(pool))


def _cuda(x, weight, bias, stride, padding, relu, pool):
    if x.shape[0] == 0:
        return _fake(x, weight, bias, stride, padding, relu, pool)
    leaf, args = torch.ops.cnnkernels._conv2d_stem_cuda, ()
    if pool:
        leaf, args = torch.ops.cnnkernels._conv2d_stem_pool_cuda, (pool[0], bool(pool[1]))
    return leaf(_args.dense(x), weight, bias, stride, padding, relu, *args)


def _fake(x, weight, bias, stride, padding, relu, pool):
    shape = _shape(x, weight, stride, padding, pool)
    return torch.empty(shape, dtype=weight.dtype, device=x.device, memory_format=_format(x, weight))


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.stride, ctx.padding, ctx.relu, ctx.pool = inputs
    # Behind a pool the convolution's output is computed again: it was never in memory.
    ctx.save_for_backward(x, weight, bias, output if ctx.relu and not ctx.pool else None)


def _backward(ctx, grad):
    x, weight, bias, out = ctx.saved_tensors
    image, geometry = x.to(weight.dtype), (ctx.stride, ctx.padding, _ONES, 1)
    if ctx.pool:
        out = _chain(image, weight, bias, ctx.stride, ctx.padding, ctx.relu, [])
        grad = pooled_gradient(grad, out, _window(ctx.pool))
    sizes = None if bias is None else list(bias.shape)
    out = out if ctx.relu else None
    _, grads = gradients(grad, image, weight, sizes, geometry, ctx.needs_input_grad, out)
    if grads[0] is not None:
        grads[0] = grads[0].to(x.dtype)
    return *grads, *[None] * 4


def _flops(x_shape, w_shape, bias=None, stride=1, padding=0, *_, **__) -> int:
    return flops_before_pool(x_shape, w_shape, stride, padding)


def _tuning_key(x, weight, *args) -> str:
    """The key for an image of the weights' dtype, and the image's own."""
    like = torch.empty_strided(x.shape, x.stride(), dtype=weight.dtype, device="meta")
    names = ("input", "weight", "bias", "stride", "padding", "relu", "pool")
    key = tuning.op_key("conv2d_image", names, (like, weight, *args))
    return f"{key}-image={str(x.dtype).removeprefix('torch.')}"


CONV2D_IMAGE = define(
    "conv2d_image(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1,"
    " SymInt[2] padding=0, bool relu=False, SymInt[] pool=[]) -> Tensor",
    impls=[
        Impl("cuda", _cuda, _cuda_why_not, held_back=_cuda_held_back),
        Impl("reference", _chain, _args.always),
    ],
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast="lower",
    flops=_flops,
    tuning_key=_tuning_key,
)
