"""max_pool2d and relu_max_pool2d: torch.nn.functional.max_pool2d, keeping one byte per output for
the backward pass where torch keeps an int64 index."""

from __future__ import annotations

import torch

from . import _args, _pool
from ._op import LIB, Impl, Op, define

# --- reference: plain PyTorch, every dtype ---------------------------------------------------


def _reference(input, kernel, stride, padding, dilation, ceil_mode, relu):
    out = torch.nn.functional.max_pool2d(
        input, kernel, stride or kernel, padding, dilation, ceil_mode
    )
    return _args.laid_out(torch.relu(out) if relu else out, input)


def _reference_with_offsets(input, kernel, stride, padding, dilation, ceil_mode, relu):
    out, offsets = _pool.max_with_offsets(input, kernel, stride, padding, dilation, ceil_mode, relu)
    return _args.laid_out(out, input), _args.laid_out(offsets, input)


def _reference_backward(grad, offsets, input_size, kernel, stride, padding, dilation):
    out = _pool.scatter(grad, offsets, input_size, kernel, stride, padding, dilation)
    return _args.laid_out(out.to(grad.dtype), offsets)


# --- compiled implementations ----------------------------------------------------------------


def _leaf(device: str, *, relu: bool | None = None, with_offsets: bool = False) -> Impl:
    """``relu`` None: the op's own last argument."""
    name = f"_max_pool2d_{device}"

    def fn(input, kernel, stride, padding, dilation, ceil_mode, *relu_argument):
        out, offsets = getattr(torch.ops.cnnkernels, name)(
            _args.dense(input), kernel, stride or kernel, padding, dilation, ceil_mode,
            relu_argument[0] if relu is None else relu, with_offsets,
        )  # fmt: skip
        return (out, offsets) if with_offsets else out

    return Impl(device, fn, lambda input, *_: _args.leaf_why_not(name, input))


def _leaf_backward(device: str) -> Impl:
    name = f"_max_pool2d_backward_{device}"

    def fn(grad, offsets, *geometry):
        offsets = _args.dense(offsets)
        return getattr(torch.ops.cnnkernels, name)(
            _args.in_format_of(grad, offsets), offsets, *geometry
        )

    return Impl(device, fn, lambda grad, *_: _args.leaf_why_not(name, grad))


def _triton(relu: bool) -> Impl:
    def fn(kernel_function, input, kernel, stride, padding, dilation, ceil_mode):
        return kernel_function(
            _args.dense(input), kernel, stride or kernel, padding, dilation, ceil_mode, relu
        )

    return _args.triton_impl("max_pool2d", "max_pool2d", fn)


# --- the ops ---------------------------------------------------------------------------------


def _check(input, kernel, stride, padding, dilation, ceil_mode, *relu, dims=(4,)) -> tuple:
    _args.check_input(input, dims=dims)
    geometry = _pool.arguments(kernel, stride, padding, dilation)
    _pool.out_shape(input.shape, *geometry, ceil_mode)
    return *geometry, ceil_mode, *relu


def _fake(input, *geometry):
    return _args.empty(_pool.out_shape(input.shape, *geometry), input)


def _fake_with_offsets(input, *arguments):
    *geometry, _relu = arguments
    out = _fake(input, *geometry)
    return out, _args.empty(out.shape, input, _pool.offset_dtype(geometry[0]))


def _flops(input_shape, kernel, *args, out_shape=None, **kwargs) -> int:
    """One comparison per tap of every window (padding counted as taps)."""
    shape = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    n, c, h, w = shape
    return n * c * h * w * kernel[0] * kernel[1]


def _autograd(relu: bool) -> dict:
    """The plain op keeps its input and finds the positions again in the backward pass. The public
    functions call the op with offsets instead where a gradient is needed."""

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.arguments = inputs[1:]

    def backward(ctx, grad):
        (input,) = ctx.saved_tensors
        kernel, stride, padding, dilation, ceil_mode = ctx.arguments
        geometry = (kernel, stride or kernel, padding, dilation)
        _, offsets = _WITH_OFFSETS(input.detach(), *geometry, ceil_mode, relu)
        grad = _GRADIENT(grad, offsets, input.shape, *geometry)
        return grad, None, None, None, None, None

    return {"setup_context": setup_context, "backward": backward}


def _define(name: str, relu: bool) -> Op:
    return define(
        f"{name}(Tensor input, {_pool.ARGUMENTS}) -> Tensor",
        impls=[
            _leaf("cuda", relu=relu),
            _leaf("cpu", relu=relu),
            _triton(relu),
            Impl("reference", lambda *a: _reference(*a, relu), _args.always),
        ],
        check=_check,
        fake=_fake,
        **_autograd(relu),
        flops=_flops,
    )


MAX_POOL2D = _define("max_pool2d", relu=False)
RELU_MAX_POOL2D = _define("relu_max_pool2d", relu=True)


def _offsets_setup_context(ctx, inputs, output):
    offsets = output[1]
    ctx.mark_non_differentiable(offsets)
    ctx.save_for_backward(offsets)
    ctx.input_size = inputs[0].shape
    ctx.geometry = inputs[1:5]


def _offsets_backward(ctx, grad, _grad_offsets):
    (offsets,) = ctx.saved_tensors
    grad = _GRADIENT(grad, offsets, ctx.input_size, *ctx.geometry)
    return grad, None, None, None, None, None, None


_WITH_OFFSETS = define(
    "_max_pool2d_with_offsets(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, "
    "int[2] dilation, bool ceil_mode, bool relu) -> (Tensor, Tensor)",
    impls=[
        _leaf("cuda", with_offsets=True),
        _leaf("cpu", with_offsets=True),
        Impl("reference", _reference_with_offsets, _args.always),
    ],
    check=_check,
    fake=_fake_with_offsets,
    setup_context=_offsets_setup_context,
    backward=_offsets_backward,
    flops=_flops,
)


def _double_setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.geometry = inputs[3:]


def _double_backward(ctx, grad):
    # The positions are constant, so the op is linear in grad; its adjoint picks what it scattered.
    (offsets,) = ctx.saved_tensors
    grad = _pool.gather(grad, offsets, *ctx.geometry)
    return grad, None, None, None, None, None, None


_GRADIENT = define(
    "_max_pool2d_backward(Tensor grad, Tensor offsets, SymInt[] input_size, int[2] kernel_size, "
    "int[2] stride, int[2] padding, int[2] dilation) -> Tensor",
    impls=[
        _leaf_backward("cuda"),
        _leaf_backward("cpu"),
        Impl("reference", _reference_backward, _args.always),
    ],
    fake=lambda grad, offsets, input_size, *_: _args.empty(input_size, offsets, grad.dtype),
    setup_context=_double_setup_context,
    backward=_double_backward,
)

# --- public functions ------------------------------------------------------------------------


def _pooled(op: Op, input, *geometry, return_indices=False):
    x, indices = input, None
    if not _args.is_batch(input):
        _check(input, *geometry, dims=(3, 4))
        x = input.unsqueeze(0)
    if return_indices or _args.needs_gradient(x):
        out, offsets = _WITH_OFFSETS(x, *geometry, op is RELU_MAX_POOL2D)
        if return_indices:
            indices = _pool.flat_indices(offsets, x.shape, *_pool.arguments(*geometry[:-1]))
    else:
        out = op(x, *geometry)
    if input.dim() == 3:
        out, indices = out.squeeze(0), indices if indices is None else indices.squeeze(0)
    return (out, indices) if return_indices else out


def max_pool2d(
    input: torch.Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """:func:`torch.nn.functional.max_pool2d`, bit for bit.

    Args:
        input: [N, C, H, W] or [C, H, W]; float64 (reference), float32, float16 or bfloat16;
            contiguous or channels_last (other strides are copied first). N may be 0.
        kernel_size, stride, padding, dilation: int or pair; stride defaults to kernel_size,
            padding is at most half of kernel_size.
        ceil_mode: round the output size up; the last window starts inside the input or its left
            padding.
        return_indices: also return the int64 index h * W + w of each maximum in its plane.

    Returns [N, C, OH, OW] in the input's dtype and memory format. The first of equal maxima wins, a
    NaN beats every number, and of several NaN the last one's index is returned. A window none of
    whose dilated taps lies inside the input gives -inf and the index -1.

    When a gradient is needed, one byte per output is kept for the backward pass (four when the
    kernel has more than 255 taps).

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    geometry = kernel_size, stride, padding, dilation, ceil_mode
    return _pooled(MAX_POOL2D, input, *geometry, return_indices=return_indices)


def relu_max_pool2d(
    input: torch.Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """``relu(max_pool2d(input, ...))``, which equals ``max_pool2d(relu(input), ...)``, in one pass.

    Arguments, result and errors as :func:`max_pool2d`; keeps one byte per output for backward.
    """
    return _pooled(RELU_MAX_POOL2D, input, kernel_size, stride, padding, dilation, ceil_mode)


LIB.define(f"max_pool2d_with_indices(Tensor input, {_pool.ARGUMENTS}) -> (Tensor, Tensor)")
LIB.impl(
    "max_pool2d_with_indices",
    lambda *args, **kwargs: max_pool2d(*args, **kwargs, return_indices=True),
    "CompositeImplicitAutograd",
)
