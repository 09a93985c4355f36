"""conv2d with bias, residual and ReLU fused: relu(conv2d(x, w) + b + residual).

One body serves four ops: conv2d, conv2d_relu, conv2d_add and conv2d_add_relu (the end of He et al.
2015's residual block). Implementations are in _conv2d.py.
"""

from __future__ import annotations

from torch.nn import functional as F
from torch.utils.flop_counter import conv_flop_count

from . import _args, _conv2d
from . import conv2d_image as image
from ._conv2d_formulas import gradients
from ._op import Op, define

GEOMETRY = "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1"


def _define(name: str, *, residual: bool, relu: bool) -> Op:
    """Register cnnkernels::<name>: conv2d, with or without a residual and a ReLU."""

    def split(args):
        """(x, weight, bias, residual, *geometry) of an op call's positional arguments."""
        if residual:
            x, weight, z, bias, *geometry = args
            return x, weight, bias, z, *geometry
        x, weight, bias, *geometry = args
        return x, weight, bias, None, *geometry

    def check(*args):
        x, weight, bias, z, *geometry = split(args)
        if residual:
            _args.check_input(z, "residual", dims=(4,))
        return _conv2d.check(x, weight, bias, z, *geometry)

    def fake(*args):
        x, weight, _, _, *pairs, _groups = split(args)
        return _conv2d.empty(x, _conv2d.output_shape(x, weight, *pairs))

    def setup_context(ctx, inputs, output):
        x, weight, bias, _residual, *ctx.geometry = split(inputs)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, weight, output if relu else None)

    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        needs = ctx.needs_input_grad
        bias_needs = [*needs[:2], needs[2 + residual]]
        grad, grads = gradients(grad, x, weight, ctx.bias_sizes, ctx.geometry, bias_needs, out)
        if residual:
            grads.insert(2, grad if needs[2] else None)
        return *grads, None, None, None, None

    def flops(x_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
        """2 per multiply-add, plus one addition per element for a residual. As in torch's own
        formula the bias counts nothing, and neither does the ReLU's comparison."""
        n, k, p, q = out_shape
        return conv_flop_count(x_shape, w_shape, out_shape) + residual * n * k * p * q

    def tuning_key(*args):
        x, weight, _, z, *geometry = split(args)
        return _conv2d.tuning_key(x, weight, z, *geometry, relu)

    z = "Tensor residual, " if residual else ""
    return define(
        f"{name}(Tensor input, Tensor weight, {z}Tensor? bias=None, {GEOMETRY}) -> Tensor",
        impls=_conv2d.implementations(residual=residual, relu=relu),
        check=check,
        fake=fake,
        setup_context=setup_context,
        backward=backward,
        autocast="lower",
        flops=flops,
        tuning_key=tuning_key,
    )


CONV2D = _define("conv2d", residual=False, relu=False)
CONV2D_RELU = _define("conv2d_relu", residual=False, relu=True)
CONV2D_ADD = _define("conv2d_add", residual=True, relu=False)
CONV2D_ADD_RELU = _define("conv2d_add_relu", residual=True, relu=True)

# --- public functions ------------------------------------------------------------------------


def call(op: Op, input, weight, others, stride, padding, dilation, groups, pool=()):
    """Accept torch.nn.functional.conv2d's forms, call the op, give back the input's rank. ``others``:
    (bias,) or (residual, bias)."""
    geometry = stride, padding, dilation, groups
    if not (_args.is_batch(input) and _args.is_batch(weight)) or isinstance(padding, str):
        return _call_other_form(op, input, weight, others, *geometry, pool)
    if input.dtype != weight.dtype and image.differs(input, weight):
        return _call_image(op, input, weight, others, *geometry, pool)
    return op(input, weight, *others, *geometry, *pool)


def _call_other_form(op: Op, input, weight, others, stride, padding, dilation, groups, pool):
    """``call`` without a batch or with padding="same" or "valid"."""
    if not image.differs(input, weight):
        _args.check_input(input)
    _args.check_input(weight, "weight", dims=(4,))
    *residual, bias = others
    for z in residual:
        _args.check_input(z, "residual", dims=(input.dim(),))
    batched = input.dim() == 4
    x, *residual = (t if batched else t.unsqueeze(0) for t in (input, *residual))
    if isinstance(padding, str):
        x, padding = _pad(x, weight, padding, stride, dilation)
    out = call(op, x, weight, (*residual, bias), stride, padding, dilation, groups, pool)
    return out if batched else out.squeeze(0)


def _call_image(op: Op, x, weight, others, stride, padding, dilation, groups, pool):
    """``call`` on an image of another dtype than the weights'."""
    window = image.window_of(pool)
    *pairs, spread = _conv2d.check_geometry(x, weight, stride, padding, dilation, groups)
    if len(others) > 1 or window is None or groups != 1 or spread != [1, 1]:
        x = x.to(weight.dtype)
        return op(x, weight, *others, stride, padding, dilation, groups, *pool)
    return image.CONV2D_IMAGE(x, weight, *others, *pairs, op is not CONV2D, window)


def _pad(x, weight, padding, stride, dilation):
    """(x, pair) for padding="same" or "valid"."""
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        raise ValueError(f"padding is {padding!r}; allowed are 'same', 'valid', an int or a pair")
    if any(s != 1 for s in _args.pair(stride, "stride", 1)):
        raise ValueError(f"stride is {stride!r}; padding='same' takes stride 1 only")
    dilation = _args.pair(dilation, "dilation", 1)
    total = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:])]
    if any(t % 2 for t in total):  # even kernels: the extra row or column goes below and right
        x = F.pad(x, [0, total[1] % 2, 0, total[0] % 2])
    return x, [t // 2 for t in total]


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """:func:`torch.nn.functional.conv2d` on the fastest implementation for the arguments.

    Args:
        input: [N, C, H, W] or [C, H, W]; float64 (reference), float32, float16 or bfloat16;
            contiguous or channels_last (other strides are copied first). N may be 0.
        weight: [K, C / groups, R, S], of the input's dtype and device. An image of 3 channels may
            also be float32 or uint8 (its values 0 to 255 as they are) with float16 and bfloat16
            weights, and uint8 with float32 ones; the output then has the weights' dtype, and is
            channels_last where input or weight is.
        bias: [K] or None.
        stride, dilation: an int or a pair (height, width), at least 1.
        padding: an int or a pair, at least 0; or "valid" (none) or "same" (stride 1 only).
        groups: C and K are split into so many independent convolutions.

    Returns [N, K, P, Q] (or [K, P, Q]) in the input's memory format, P = (H + 2 padding
    − dilation (R − 1) − 1) // stride + 1. Sums in fp32 and rounds once; fp32 inputs on a GPU use
    TF32 where ``torch.backends.cudnn.allow_tf32`` permits.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    return call(CONV2D, input, weight, (bias,), stride, padding, dilation, groups)


def conv2d_relu(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """``relu(conv2d(input, weight, bias, …))`` in one pass; arguments as for :func:`conv2d`.

    For training the output is kept: it tells where the ReLU was open.
    """
    return call(CONV2D_RELU, input, weight, (bias,), stride, padding, dilation, groups)


def conv2d_add(input, weight, residual, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """``conv2d(input, weight, bias, …) + residual`` in one pass; arguments as for :func:`conv2d`,
    and residual: a tensor of the output's shape, the input's dtype and device."""
    return call(CONV2D_ADD, input, weight, (residual, bias), stride, padding, dilation, groups)


def conv2d_add_relu(input, weight, residual, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """``relu(conv2d(input, weight, bias, …) + residual)`` in one pass: the end of a residual block
    (He et al. 2015). Arguments as for :func:`conv2d`, and residual: a tensor of the output's shape,
    the input's dtype and device."""
    return call(CONV2D_ADD_RELU, input, weight, (residual, bias), stride, padding, dilation, groups)
