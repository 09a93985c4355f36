"""conv2d with bias, residual, ReLU and max-pooling fused: relu(conv2d(x, w) + b + residual).

One body serves five ops: conv2d, conv2d_relu, conv2d_add, conv2d_add_relu (the end of He et al.
2015's residual block) and conv2d_relu_max_pool2d. Implementations are in _conv2d.py.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import conv_flop_count

from . import _args, _conv2d
from ._op import Impl, define

_GEOMETRY = "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1"


def _define(name: str, *, residual: bool, relu: bool) -> None:
    """Register cnnkernels::<name>: conv2d, with or without a residual and a ReLU."""

    def split(args):
        """(x, weight, bias, residual, *geometry) of an op call's positional arguments."""
        if residual:
            x, weight, z, bias, *geometry = args
            return x, weight, bias, z, *geometry
        x, weight, bias, *geometry = args
        return x, weight, bias, None, *geometry

    def fake(*args):
        args = (*args, *((None, 1, 0, 1, 1)[len(args) - 2 - residual :]))
        x, weight, bias, z, *geometry = split(args)
        return _conv2d.empty(x, _conv2d.check(x, weight, bias, z, *geometry))

    def setup_context(ctx, inputs, output):
        x, weight, bias, _residual, *ctx.geometry = split(inputs)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, weight, output if relu else None)

    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        if relu:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        needs = ctx.needs_input_grad
        mask = [needs[0], needs[1], ctx.bias_sizes is not None and needs[2 + residual]]
        grads = (None, None, None)
        if any(mask):
            grads = torch.ops.aten.convolution_backward(
                grad, x, weight, ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups,
                mask,
            )  # fmt: skip
        grads = [g if wanted else None for g, wanted in zip(grads, mask)]
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
    define(
        f"{name}(Tensor input, Tensor weight, {z}Tensor? bias=None, {_GEOMETRY}) -> Tensor",
        impls=_conv2d.implementations(residual=residual, relu=relu),
        fake=fake,
        setup_context=setup_context,
        backward=backward,
        autocast="lower",
        flops=flops,
        tuning_key=tuning_key,
    )


_define("conv2d", residual=False, relu=False)
_define("conv2d_relu", residual=False, relu=True)
_define("conv2d_add", residual=True, relu=False)
_define("conv2d_add_relu", residual=True, relu=True)

# --- conv2d_relu_max_pool2d ------------------------------------------------------------------


def _pool(kernel_size, stride, padding, dilation) -> list[list[int]]:
    """The four pairs, checked as torch.nn.functional.max_pool2d does."""
    kernel = _args.pair(kernel_size, "pool_kernel_size", 1)
    empty = stride is None or (isinstance(stride, (list, tuple)) and not len(stride))
    stride = kernel if empty else _args.pair(stride, "pool_stride", 1)
    padding = _args.pair(padding, "pool_padding", 0)
    dilation = _args.pair(dilation, "pool_dilation", 1)
    for pad, size in zip(padding, kernel):
        if 2 * pad > size:
            raise ValueError(
                f"pool_padding is {padding}; it must be at most half of pool_kernel_size={kernel}"
            )
    return [kernel, stride, padding, dilation]


def _pooled(shape, kernel, stride, padding, dilation, ceil_mode) -> list[int]:
    sizes = []
    for i, size in enumerate(shape[2:]):
        span = size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
        out = (span + (stride[i] - 1 if ceil_mode else 0)) // stride[i] + 1
        if ceil_mode and (out - 1) * stride[i] >= size + padding[i]:
            out -= 1  # a window must start inside the input or its left padding
        if out < 1:
            raise ValueError(
                f"pool_kernel_size is {kernel} with pool_dilation={dilation}; it exceeds the"
                f" convolution's output {list(shape[2:])} padded by {padding}"
            )
        sizes.append(out)
    return [*shape[:2], *sizes]


def _chain(x, weight, bias, stride, padding, dilation, groups, *pool):
    """conv2d_relu, then max_pool2d: two ops, each with its own choice."""
    *pairs, ceil_mode = pool
    pairs = _pool(*pairs)
    _pooled(_conv2d.check(x, weight, bias, None, stride, padding, dilation, groups), *pairs,
            ceil_mode)  # fmt: skip
    y = torch.ops.cnnkernels.conv2d_relu(x, weight, bias, stride, padding, dilation, groups)
    if x.shape[0] == 0:
        return _conv2d.empty(x, _pooled(y.shape, *pairs, ceil_mode))
    return torch.ops.cnnkernels.max_pool2d(y, *pairs, ceil_mode)


def _fused_why_not(x, weight, bias, stride, padding, dilation, groups, *pool) -> str | None:
    """Why the compiled kernel that pools in its epilogue can't run."""
    *pairs, ceil_mode = pool
    if _pool(*pairs) != [[2, 2], [2, 2], [0, 0], [1, 1]]:
        return "the kernel pools 2x2 windows of stride 2, without padding"
    if list(stride) != [1, 1] or list(dilation) != [1, 1]:
        return "the kernel that pools has stride and dilation 1"
    if ceil_mode and any(size % 2 for size in _conv2d.output_shape(x, weight, *(
        stride, padding, dilation))[2:]):  # fmt: skip
        return "the kernel drops odd edges (ceil_mode=False)"
    return _conv2d.cuda_why_not(
        x, weight, bias, None, stride, padding, dilation, groups, True, pool=True
    )


def _fused(x, weight, bias, stride, padding, dilation, groups, *pool):
    _pooled(_conv2d.check(x, weight, bias, None, stride, padding, dilation, groups), *_pool(
        *pool[:-1]), pool[-1])  # fmt: skip
    return torch.ops.cnnkernels._conv2d_pool_cuda(
        _args.dense(x), weight, bias, list(padding), groups, True, ""
    )


def _chain_fake(
    x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
    pool_kernel_size=2, pool_stride=None, pool_padding=0, pool_dilation=1, ceil_mode=False,
):  # fmt: skip
    shape = _conv2d.check(x, weight, bias, None, stride, padding, dilation, groups)
    pool = _pool(pool_kernel_size, pool_stride, pool_padding, pool_dilation)
    return _conv2d.empty(x, _pooled(shape, *pool, ceil_mode))


def _chain_setup_context(ctx, inputs, output):
    x, weight, bias, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight, bias)


def _chain_backward(ctx, grad):
    # The convolution's output is recomputed: the fused op exists so as not to keep it.
    x, weight, bias = ctx.saved_tensors
    stride, padding, dilation, groups, *pool, ceil_mode = ctx.geometry
    pool = _pool(*pool)
    y = torch.ops.cnnkernels.conv2d_relu(x, weight, bias, stride, padding, dilation, groups)
    _, indices = torch.ops.aten.max_pool2d_with_indices(y, *pool, ceil_mode)
    grad = torch.ops.aten.max_pool2d_with_indices_backward(grad, y, *pool, ceil_mode, indices)
    grad = torch.ops.aten.threshold_backward(grad, y, 0)
    mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1],
            bias is not None and ctx.needs_input_grad[2]]  # fmt: skip
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, None if bias is None else list(bias.shape), stride, padding, dilation,
        False, [0, 0], groups, mask,
    )  # fmt: skip
    return *(g if wanted else None for g, wanted in zip(grads, mask)), *[None] * 9


def _chain_flops(x_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
    """The convolution's; comparisons are not counted."""
    _bias, stride, padding, dilation, *_ = (*args, *(None, 1, 0, 1)[len(args) :])
    x, weight = (torch.empty(shape, device="meta") for shape in (x_shape, w_shape))
    pairs = [_args.pair(value, "", 0) for value in (stride, padding, dilation)]
    return conv_flop_count(x_shape, w_shape, _conv2d.output_shape(x, weight, *pairs))


define(
    f"conv2d_relu_max_pool2d(Tensor input, Tensor weight, Tensor? bias=None, {_GEOMETRY},"
    " SymInt[2] pool_kernel_size=2, SymInt[2] pool_stride=[], SymInt[2] pool_padding=0,"
    " SymInt[2] pool_dilation=1, bool ceil_mode=False) -> Tensor",
    impls=[
        Impl("cuda", _fused, _fused_why_not),
        Impl("reference", _chain, _args.always),
    ],
    fake=_chain_fake,
    setup_context=_chain_setup_context,
    backward=_chain_backward,
    autocast="lower",
    flops=_chain_flops,
)

# --- public functions ------------------------------------------------------------------------


def _call(op, input, weight, bias, stride, padding, dilation, groups, residual=None, pool=()):
    """Accept torch.nn.functional.conv2d's forms, call the op, give back the input's rank."""
    _args.check_input(input)
    _args.check_input(weight, "weight", dims=(4,))
    batched = input.dim() == 4
    x = input if batched else input.unsqueeze(0)
    if residual is not None:
        _args.check_input(residual, "residual", dims=(input.dim(),))
        residual = residual if batched else residual.unsqueeze(0)
    if isinstance(padding, str):
        x, padding = _pad(x, weight, padding, stride, dilation)
    pairs = _conv2d.check_geometry(x, weight, stride, padding, dilation, groups)
    _conv2d.check_operands(x, weight, bias, residual, _conv2d.output_shape(x, weight, *pairs))
    tensors = (x, weight, bias) if residual is None else (x, weight, residual, bias)
    out = op(*tensors, *pairs, groups, *pool)
    return out if batched else out.squeeze(0)


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
        weight: [K, C / groups, R, S], of the input's dtype and device.
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
    op = torch.ops.cnnkernels.conv2d
    return _call(op, input, weight, bias, stride, padding, dilation, groups)


def conv2d_relu(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """``relu(conv2d(input, weight, bias, …))`` in one pass; arguments as for :func:`conv2d`.

    For training the output is kept: it tells where the ReLU was open.
    """
    op = torch.ops.cnnkernels.conv2d_relu
    return _call(op, input, weight, bias, stride, padding, dilation, groups)


def conv2d_add(input, weight, residual, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """``conv2d(input, weight, bias, …) + residual`` in one pass; arguments as for :func:`conv2d`,
    and residual: a tensor of the output's shape, the input's dtype and device."""
    op = torch.ops.cnnkernels.conv2d_add
    _args.check_input(residual, "residual")
    return _call(op, input, weight, bias, stride, padding, dilation, groups, residual)


def conv2d_add_relu(input, weight, residual, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """``relu(conv2d(input, weight, bias, …) + residual)`` in one pass: the end of a residual block
    (He et al. 2015). Arguments as for :func:`conv2d`, and residual: a tensor of the output's shape,
    the input's dtype and device."""
    op = torch.ops.cnnkernels.conv2d_add_relu
    _args.check_input(residual, "residual")
    return _call(op, input, weight, bias, stride, padding, dilation, groups, residual)


def conv2d_relu_max_pool2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
    pool_kernel_size=2, pool_stride=None, pool_padding=0, pool_dilation=1, ceil_mode=False,
):  # fmt: skip
    """``max_pool2d(relu(conv2d(input, weight, bias, …)), pool_kernel_size, …)``.

    Arguments as for :func:`conv2d` and :func:`torch.nn.functional.max_pool2d`. For training only
    the inputs are kept and the convolution is computed again in the backward pass.
    """
    pool = _pool(pool_kernel_size, pool_stride, pool_padding, pool_dilation)
    op = torch.ops.cnnkernels.conv2d_relu_max_pool2d
    return _call(
        op, input, weight, bias, stride, padding, dilation, groups, pool=(*pool, ceil_mode)
    )
