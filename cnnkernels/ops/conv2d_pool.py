"""conv2d_relu_max_pool2d: a convolution, its ReLU and a max-pool as in VGG (Simonyan & Zisserman 2014),
the unpooled output never in memory where a kernel pools in its epilogue."""

from __future__ import annotations

import torch

from . import _args, _conv2d, _pool
from . import _conv2d_stem as stem
from . import _conv2d_vendor as vendor
from ._conv2d_formulas import flops_before_pool, gradients, pooled_gradient
from ._op import Impl, define
from .conv2d import CONV2D_RELU, GEOMETRY, call
from .conv2d_image import window_of
from .max_pool2d import MAX_POOL2D


def _window(*pool) -> tuple[list[int], ...]:
    """Kernel, stride, padding, dilation of the pooling arguments, checked."""
    return _pool.arguments(*pool, prefix="pool_")


def _chain(x, weight, bias, stride, padding, dilation, groups, *pool):
    """conv2d_relu, then max_pool2d: two ops, each with its own choice."""
    if x.shape[0] == 0:
        return _empty(x, weight, bias, stride, padding, dilation, groups, *pool)
    return MAX_POOL2D(CONV2D_RELU(x, weight, bias, stride, padding, dilation, groups), *pool)


def _cpu_why_not(x, weight, bias, stride, padding, dilation, groups, *pool) -> str | None:
    if _window(*pool[:-1])[3] != [1, 1]:
        return "a dilated window may miss the input, and ReLU comes before the pool then"
    return _args.leaf_why_not("_max_pool2d_cpu", x) or vendor.cpu_why_not(
        x, weight, bias, None, stride, padding, dilation, groups, True
    )


def _cpu(x, weight, bias, stride, padding, dilation, groups, *pool):
    """oneDNN's convolution, then ReLU and max-pool in one pass."""
    if x.shape[0] == 0:
        return _empty(x, weight, bias, stride, padding, dilation, groups, *pool)
    kernel, pool_stride, *rest = pool
    y = vendor.cpu(_args.dense(x), weight, bias, None, stride, padding, dilation, groups, False)
    y = _args.in_format_of(y, x)
    leaf = torch.ops.cnnkernels._max_pool2d_cpu
    return leaf(y, kernel, pool_stride or kernel, *rest, True, False)[0]


def _windows_why_not(x, weight, stride, padding, dilation, *pool) -> str | None:
    """Why these windows can't be taken in a convolution's epilogue."""
    *pairs, ceil_mode = pool
    if _window(*pairs) != ([2, 2], [2, 2], [0, 0], [1, 1]):
        return "the kernel pools 2x2 windows of stride 2, without padding"
    sizes = _conv2d.output_shape(x, weight, stride, padding, dilation)[2:]
    odd = ceil_mode and any(size % 2 for size in sizes)
    return "the kernel drops odd edges (ceil_mode=False)" if odd else None


def _stem_takes(x, weight, bias, stride, padding, dilation, groups, *pool) -> bool:
    """Whether a stem kernel pools in its epilogue: 3x3 windows of stride 2."""
    if x.shape[1] != 3:  # what stem.why_not begins with; the window takes longer
        return False
    window = window_of(pool)
    if window is None:
        return False
    why_not = stem.why_not(x, weight, None, stride, padding, dilation, groups, tuple(window))
    return why_not is None


def _cuda_held_back(x, weight, *args) -> str | None:
    """Why a stem kernel that could run is not the default."""
    return stem.unverified(x, weight, True) if _stem_takes(x, weight, *args) else None


def _cuda_why_not(x, weight, bias, stride, padding, dilation, groups, *pool) -> str | None:
    """Why the compiled kernels that pool in their epilogue can't run."""
    if _stem_takes(x, weight, bias, stride, padding, dilation, groups, *pool):
        return None
    if list(stride) != [1, 1] or list(dilation) != [1, 1]:
        return "the kernel that pools has stride and dilation 1"
    return _windows_why_not(x, weight, stride, padding, dilation, *pool) or _conv2d.cuda_why_not(
        x, weight, bias, None, stride, padding, dilation, groups, True, pool=True
    )


def _check(x, weight, bias, stride, padding, dilation, groups, *pool) -> tuple:
    *pairs, groups = _conv2d.check(x, weight, bias, None, stride, padding, dilation, groups)
    *pool, ceil_mode = pool
    args = *pairs, groups, *_window(*pool), ceil_mode
    _out_shape(x, weight, *args)
    return args


def _out_shape(x, weight, stride, padding, dilation, _groups, *pool) -> list[int]:
    """The output's; ValueError when a window doesn't fit."""
    shape = _conv2d.output_shape(x, weight, stride, padding, dilation)
    return _pool.out_shape(shape, *pool, prefix="pool_", name="the convolution's output")


def _empty(x, weight, bias, *args) -> torch.Tensor:
    return _fake(x, weight, bias, *_check(x, weight, bias, *args))


def _cuda(x, weight, bias, stride, padding, dilation, groups, *pool):
    if x.shape[0] == 0:
        return _empty(x, weight, bias, stride, padding, dilation, groups, *pool)
    if _stem_takes(x, weight, bias, stride, padding, dilation, groups, *pool):
        pad, ceil_mode = window_of(pool)
        return torch.ops.cnnkernels._conv2d_stem_pool_cuda(
            _args.dense(x), weight, bias, stride, padding, True, pad, bool(ceil_mode)
        )
    return torch.ops.cnnkernels._conv2d_pool_cuda(
        _args.dense(x), weight, bias, padding, groups, True, ""
    )


def _cuda_detail(x, weight, bias, stride, padding, dilation, groups, *pool, config=None) -> str:
    if _stem_takes(x, weight, bias, stride, padding, dilation, groups, *pool):
        return "the stem kernel with its pool"
    return _conv2d.cuda_detail(
        x, weight, bias, None, stride, padding, dilation, groups, True, config, pool=True
    )


def _triton_why_not(x, weight, bias, stride, padding, dilation, groups, *pool) -> str | None:
    return _windows_why_not(x, weight, stride, padding, dilation, *pool) or _conv2d.triton_why_not(
        x, weight, bias, None, stride, padding, dilation, groups, True
    )


def _triton(x, weight, bias, stride, padding, dilation, groups, *pool, config=None):
    if x.shape[0] == 0:
        return _empty(x, weight, bias, stride, padding, dilation, groups, *pool)
    return _conv2d.triton_conv2d(
        _args.dense(x), weight, bias, None, stride, padding, dilation, groups, True, config,
        pool=True,
    )  # fmt: skip


def _triton_configs(x, weight, bias, stride, padding, dilation, groups, *pool) -> list[dict]:
    geometry = stride, padding, dilation, groups
    return _conv2d.triton_configs_of(x, weight, bias, None, *geometry, True, pool=True)


def _fake(x, weight, bias, *args):
    return _conv2d.empty(x, _out_shape(x, weight, *args))


def _setup_context(ctx, inputs, output):
    x, weight, bias, *ctx.geometry = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, grad):
    # The convolution's output is recomputed: the fused op exists so as not to keep it.
    x, weight, bias = ctx.saved_tensors
    geometry, (*pool, ceil_mode) = ctx.geometry[:4], ctx.geometry[4:]
    y = CONV2D_RELU(x, weight, bias, *geometry)
    grad = pooled_gradient(grad, y, (*_window(*pool), ceil_mode))
    sizes = None if bias is None else list(bias.shape)
    _, grads = gradients(grad, x, weight, sizes, geometry, ctx.needs_input_grad, y)
    return *grads, *[None] * 9


def _flops(x_shape, w_shape, bias=None, stride=1, padding=0, dilation=1, *_, **__) -> int:
    return flops_before_pool(x_shape, w_shape, stride, padding, dilation)


_OP = define(
    f"conv2d_relu_max_pool2d(Tensor input, Tensor weight, Tensor? bias=None, {GEOMETRY},"
    " SymInt[2] pool_kernel_size=2, SymInt[2] pool_stride=[], SymInt[2] pool_padding=0,"
    " SymInt[2] pool_dilation=1, bool ceil_mode=False) -> Tensor",
    impls=[
        Impl("cuda", _cuda, _cuda_why_not, held_back=_cuda_held_back, detail=_cuda_detail),
        Impl("triton", _triton, _triton_why_not, default=False, configs=_triton_configs),
        Impl("cpu", _cpu, _cpu_why_not),
        Impl("reference", _chain, _args.always),
    ],
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast="lower",
    flops=_flops,
)


def conv2d_relu_max_pool2d(
    input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
    pool_kernel_size=2, pool_stride=None, pool_padding=0, pool_dilation=1, ceil_mode=False,
):  # fmt: skip
    """``max_pool2d(relu(conv2d(input, weight, bias, …)), pool_kernel_size, …)``.

    Arguments as for :func:`conv2d` and :func:`torch.nn.functional.max_pool2d`. For training only
    the inputs are kept and the convolution is computed again in the backward pass.
    """
    pool = pool_kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode
    return call(_OP, input, weight, (bias,), stride, padding, dilation, groups, pool)
