"""relu_lrn_max_pool2d: the end of AlexNet's first two stages (conv, ReLU, LRN, pool) in one pass,
keeping its input and one byte per output for the backward pass.

Caffe's order, pool then LRN, is ``local_response_norm(max_pool2d(x))``: the tensor between the two
is the small one there, so fusing them would save little.
"""

from __future__ import annotations

import torch

from . import _args, _pool, lrn
from ._op import Impl, define

# --- reference: plain PyTorch, every dtype ---------------------------------------------------


def _reference_with_offsets(
    input, bias, size, alpha, beta, k, relu, kernel, stride, padding, dilation, ceil_mode
):
    v = lrn.value(input, bias, relu)
    # Rounded before the pooling compares, as the unfused chain's would be.
    normalised = lrn.forward_formula(v, size, alpha, beta, k).to(input.dtype)
    out, offsets = _pool.max_with_offsets(
        normalised, kernel, stride, padding, dilation, ceil_mode, relu=False
    )
    return _args.laid_out(out, input), _args.laid_out(offsets, input)


def _backward_formula(
    grad, input, bias, offsets, size, alpha, beta, k, relu, kernel, stride, padding, dilation
):
    v = lrn.value(input, bias, relu)
    pooled = _pool.scatter(grad, offsets, input.shape, kernel, stride, padding, dilation)
    out = lrn.backward_formula(pooled.to(v.dtype), v, size, alpha, beta, k)
    return (lrn.through_relu(out, input, bias) if relu else out).to(input.dtype)


def _reference_backward(grad, input, *args):
    return _args.laid_out(_backward_formula(grad, input, *args), input)


# --- compiled implementations ----------------------------------------------------------------


def _leaf(device: str, adapt, with_offsets: bool) -> Impl:
    """``adapt`` turns the op's arguments into those of _lrn_pool_with_offsets."""
    name = f"_lrn_pool_{device}"

    def fn(*args):
        input, *rest = adapt(*args)
        out, offsets = getattr(torch.ops.cnnkernels, name)(_args.dense(input), *rest, with_offsets)
        return (out, offsets) if with_offsets else out

    return Impl(device, fn, lambda input, *_: _args.leaf_why_not(name, input))


def _leaf_backward(device: str) -> Impl:
    name = f"_lrn_pool_backward_{device}"

    def fn(grad, input, bias, offsets, *args):
        input = _args.dense(input)
        return getattr(torch.ops.cnnkernels, name)(
            _args.in_format_of(grad, input), input, bias, _args.in_format_of(offsets, input), *args
        )

    return Impl(device, fn, lambda grad, *_: _args.leaf_why_not(name, grad))


# --- the ops ---------------------------------------------------------------------------------


def _unpack(input, size, alpha, beta, k, kernel, stride, padding, dilation, ceil_mode):
    """relu_lrn_max_pool2d's arguments as those of _lrn_pool_with_offsets."""
    stride = kernel if stride in (None, [], ()) else stride
    return input, None, size, alpha, beta, k, True, kernel, stride, padding, dilation, ceil_mode


def _same(*args):
    return args


def _check(input, bias, size, alpha, beta, k, relu, *window) -> tuple:
    parameters = lrn.check(input, bias, size, alpha, beta, k, relu)
    *geometry, ceil_mode = window
    geometry = *_pool.arguments(*geometry), ceil_mode
    _pool.out_shape(input.shape, *geometry)
    return *parameters, *geometry


def _check_plain(*args) -> tuple:
    *parameters, _relu, kernel, stride, padding, dilation, ceil_mode = _check(*_unpack(*args))
    return *parameters, kernel, stride, padding, dilation, ceil_mode


def _fake_with_offsets(input, bias, size, alpha, beta, k, relu, *geometry):
    shape = _pool.out_shape(input.shape, *geometry)
    offsets = _args.empty(shape, input, _pool.offset_dtype(geometry[0]))
    return _args.empty(shape, input), offsets


def _flops(input_shape, *args, out_shape=None, **kwargs) -> int:
    """The LRN's size + 4 per element of the input and the pool's comparison per tap."""
    n, c, h, w = input_shape
    size = next(a for a in args if isinstance(a, int) and not isinstance(a, bool))
    kernel = next(a for a in args if isinstance(a, (list, tuple)) and len(a) == 2)
    out = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return n * c * (h * w * (size + 4) + out[2] * out[3] * kernel[0] * kernel[1])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.arguments = inputs[1:]


def _backward(ctx, grad):
    # The plain op keeps its input only, and finds the positions again here. The public function
    # calls the op with offsets where a gradient is needed.
    (input,) = ctx.saved_tensors
    input_, bias, *args, ceil_mode = _unpack(input.detach(), *ctx.arguments)
    _, offsets = _WITH_OFFSETS(input_, bias, *args, ceil_mode)
    grad = _GRADIENT(grad, input, bias, offsets, *args)
    return grad, *[None] * 9


_PLAIN = define(
    "relu_lrn_max_pool2d(Tensor input, int size, float alpha, float beta, float k, "
    f"{_pool.ARGUMENTS}) -> Tensor",
    impls=[
        _leaf("cuda", _unpack, with_offsets=False),
        _leaf("cpu", _unpack, with_offsets=False),
        _args.triton_impl(
            "lrn_pool",
            "lrn_pool",
            lambda kernel, input, *args: kernel(*_unpack(_args.dense(input), *args)),
        ),
        Impl("reference", lambda *args: _reference_with_offsets(*_unpack(*args))[0], _args.always),
    ],
    check=_check_plain,
    fake=lambda *args: _fake_with_offsets(*_unpack(*args))[0],
    setup_context=_setup_context,
    backward=_backward,
    flops=_flops,
)


def _offsets_setup_context(ctx, inputs, output):
    input, bias, *ctx.arguments, _ceil_mode = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(input, bias, output[1])


def _offsets_backward(ctx, grad, _grad_offsets):
    input, bias, offsets = ctx.saved_tensors
    grad = _GRADIENT(grad, input, bias, offsets, *ctx.arguments)
    grad_bias = None
    if bias is not None:
        grad_bias = lrn.bias_gradient(grad, bias)
    return grad, grad_bias, *[None] * 10


_WITH_OFFSETS = define(
    "_lrn_pool_with_offsets(Tensor input, Tensor? bias, int size, float alpha, float beta, "
    "float k, bool relu, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
    "bool ceil_mode) -> (Tensor, Tensor)",
    impls=[
        _leaf("cuda", _same, with_offsets=True),
        _leaf("cpu", _same, with_offsets=True),
        Impl("reference", _reference_with_offsets, _args.always),
    ],
    check=_check,
    fake=_fake_with_offsets,
    setup_context=_offsets_setup_context,
    backward=_offsets_backward,
    flops=_flops,
)


def _double_setup_context(ctx, inputs, output):
    grad, input, bias, offsets, *ctx.arguments = inputs
    ctx.save_for_backward(grad, input, bias, offsets)


def _double_backward(ctx, grad):
    *inputs, offsets = ctx.saved_tensors
    grads = lrn.differentiate(
        lambda g, x, b: _backward_formula(g, x, b, offsets, *ctx.arguments), inputs, grad
    )
    return *grads, *[None] * 10


_GRADIENT = define(
    "_lrn_pool_backward(Tensor grad, Tensor input, Tensor? bias, Tensor offsets, int size, "
    "float alpha, float beta, float k, bool relu, int[2] kernel_size, int[2] stride, "
    "int[2] padding, int[2] dilation) -> Tensor",
    impls=[
        _leaf_backward("cuda"),
        _leaf_backward("cpu"),
        Impl("reference", _reference_backward, _args.always),
    ],
    fake=lambda grad, input, *_: _args.empty(input.shape, input),
    setup_context=_double_setup_context,
    backward=_double_backward,
)

# --- public function -------------------------------------------------------------------------


def relu_lrn_max_pool2d(
    input: torch.Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """``max_pool2d(local_response_norm(relu(input), ...), ...)`` in one pass over memory.

    Args:
        input: [N, C, H, W]; float64 (reference), float32, float16 or bfloat16 (fp32 arithmetic; the
            normalised value is rounded to the dtype before it is compared); contiguous or
            channels_last.
        size, alpha, beta, k: as :func:`local_response_norm`.
        kernel_size, stride, padding, dilation, ceil_mode: as :func:`max_pool2d`.

    Returns [N, C, OH, OW] in the input's dtype and memory format. When a gradient is needed, the
    input and one byte per output are kept for the backward pass; PyTorch keeps seven tensors of the
    input's size and an int64 index. Caffe's order is ``local_response_norm(max_pool2d(x))``.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    args = size, alpha, beta, k, kernel_size, stride, padding, dilation, ceil_mode
    if _args.needs_gradient(input):
        return _WITH_OFFSETS(*_unpack(input, *args))[0]
    return _PLAIN(input, *args)
