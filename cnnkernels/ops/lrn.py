"""local_response_norm, relu_lrn and bias_relu_lrn: normalisation across channels (Krizhevsky et al.
2012, section 3.3), keeping nothing but its input for the backward pass.

v = input (+ bias) (ReLU), d = k + alpha / size * (sum of v^2 over `size` channels), out = v * d^-beta.
The paper multiplies alpha by the sum; torch, Caffe and cuDNN by the mean, as here.
"""

from __future__ import annotations

import math

import torch

from . import _args
from ._op import Impl, Op, define

ARGUMENTS = "int size, float alpha=0.0001, float beta=0.75, float k=1.0"

# --- reference: plain PyTorch, every dtype, differentiable -------------------------------------


def value(x, bias, relu: bool):
    """What is normalised, in fp32 (fp64 for fp64). x [N, C, H, W], bias [C] or None."""
    v = x if x.dtype == torch.float64 else x.float()
    if bias is not None:
        v = v + bias.to(v.dtype).view(1, -1, 1, 1)
    return torch.relu(v) if relu else v


def _window_sum(x, before: int, after: int):
    """Sums over channels [c - before, c + after], clipped."""
    if x.numel() == 0:
        return x
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, before, after))
    return padded.unfold(1, before + after + 1, 1).sum(-1)


def forward_formula(v, size: int, alpha: float, beta: float, k: float):
    d = k + alpha / size * _window_sum(v.square(), size // 2, (size - 1) // 2)
    return v * d.pow(-beta)


def backward_formula(grad, v, size: int, alpha: float, beta: float, k: float):
    """d out / d v, applied to grad; both in fp32 or fp64.

    grad * d^-beta - 2 alpha beta / size * v * (sum of grad v d^(-beta-1) over the windows that
    contain the channel).
    """
    d = k + alpha / size * _window_sum(v.square(), size // 2, (size - 1) // 2)
    inner = _window_sum(grad * v * d.pow(-beta - 1), (size - 1) // 2, size // 2)
    return grad * d.pow(-beta) - 2 * alpha * beta / size * v * inner


def through_relu(grad, x, bias):
    """grad where the ReLU passed x (+ bias) or made a NaN of it, else 0."""
    before = value(x, bias, relu=False)
    return torch.where(before <= 0, torch.zeros_like(grad), grad)


def _reference(input, bias, size, alpha, beta, k, relu):
    out = forward_formula(value(input, bias, relu), size, alpha, beta, k)
    return _args.laid_out(out.to(input.dtype), input)


def _backward_formula(grad, input, bias, size, alpha, beta, k, relu):
    v = value(input, bias, relu)
    out = backward_formula(grad.to(v.dtype), v, size, alpha, beta, k)
    return (through_relu(out, input, bias) if relu else out).to(input.dtype)


def _reference_backward(grad, input, *args):
    return _args.laid_out(_backward_formula(grad, input, *args), input)


# --- compiled implementations ----------------------------------------------------------------


def _leaf(device: str, adapt) -> Impl:
    """``adapt`` turns the op's arguments into the leaf's."""
    name = f"_lrn_{device}"

    def fn(*args):
        input, *rest = adapt(*args)
        return getattr(torch.ops.cnnkernels, name)(_args.dense(input), *rest)

    return Impl(device, fn, lambda input, *_: _args.leaf_why_not(name, input))


def _leaf_backward(device: str) -> Impl:
    name = f"_lrn_backward_{device}"

    def fn(grad, input, *args):
        input = _args.dense(input)
        return getattr(torch.ops.cnnkernels, name)(_args.in_format_of(grad, input), input, *args)

    return Impl(device, fn, lambda grad, *_: _args.leaf_why_not(name, grad))


def _triton(adapt) -> Impl:
    def fn(kernel, *args):
        input, *rest = adapt(*args)
        return kernel(_args.dense(input), *rest)

    return _args.triton_impl("lrn", "local_response_norm", fn)


# --- the ops ---------------------------------------------------------------------------------


def check_parameters(size, alpha, beta, k) -> None:
    """ValueError unless size is a positive int and alpha, beta and k are finite numbers."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size is {size!r}; it must be an int of at least 1")
    for name, number in (("alpha", alpha), ("beta", beta), ("k", k)):
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{name} is {number!r}; it must be a finite number")


def check_bias(input, bias) -> None:
    """ValueError unless bias is [C] of the input's dtype and device."""
    _args.check_input(bias, "bias", dims=(1,))
    _args.check_same(input, bias, "bias", shape=False)
    if bias.shape[0] != input.shape[1]:
        raise ValueError(f"bias has shape {list(bias.shape)}; it must be [{input.shape[1]}]")


def check(input, bias, size, alpha, beta, k, *rest) -> tuple:
    _args.check_input(input, dims=(4,))
    check_parameters(size, alpha, beta, k)
    if bias is not None:
        check_bias(input, bias)
    return size, alpha, beta, k, *rest


def _flops(input_shape, *args, out_shape=None, **kwargs) -> int:
    """Per element: its square, the window's additions, scale, offset, power and product: size + 4."""
    size = next(a for a in args if isinstance(a, int))  # after bias, where there is one
    return math.prod(input_shape) * (size + 4)


def bias_gradient(grad, bias):
    """The bias's gradient from its input's [N, C, H, W], summed in fp32 (fp64 for fp64)."""
    wide = grad.dtype if grad.dtype == torch.float64 else torch.float32
    return grad.sum((0, 2, 3), dtype=wide).to(bias.dtype)


def _autograd(adapt, with_bias: bool) -> dict:
    def setup_context(ctx, inputs, output):
        input, bias, *ctx.parameters = adapt(*inputs)
        ctx.save_for_backward(input, *([bias] if with_bias else []))

    def backward(ctx, grad):
        input, *bias = ctx.saved_tensors
        bias = bias[0] if bias else None
        grad = _GRADIENT(grad, input, bias, *ctx.parameters)
        if not with_bias:
            return grad, None, None, None, None
        return grad, bias_gradient(grad, bias), None, None, None, None

    return {"setup_context": setup_context, "backward": backward}


def _define(schema: str, adapt, with_bias: bool = False) -> Op:
    return define(
        f"{schema} -> Tensor",
        impls=[
            _leaf("cuda", adapt),
            _leaf("cpu", adapt),
            _triton(adapt),
            Impl("reference", lambda *args: _reference(*adapt(*args)), _args.always),
        ],
        check=lambda *args: check(*adapt(*args))[:4],
        fake=lambda input, *_: _args.empty(input.shape, input),
        **_autograd(adapt, with_bias),
        autocast="promote" if with_bias else None,
        flops=_flops,
    )


_LOCAL_RESPONSE_NORM = _define(
    f"local_response_norm(Tensor input, {ARGUMENTS})",
    lambda input, size, alpha, beta, k: (input, None, size, alpha, beta, k, False),
)
_RELU_LRN = _define(
    f"relu_lrn(Tensor input, {ARGUMENTS})",
    lambda input, size, alpha, beta, k: (input, None, size, alpha, beta, k, True),
)
_BIAS_RELU_LRN = _define(
    f"bias_relu_lrn(Tensor input, Tensor bias, {ARGUMENTS})",
    lambda input, bias, size, alpha, beta, k: (input, bias, size, alpha, beta, k, True),
    with_bias=True,
)


def differentiate(formula, inputs, grad):
    """Gradients of ``formula(*inputs)`` at ``grad`` for the inputs that need one, themselves
    differentiable: how the backward ops get their own derivative."""
    needed = [t for t in inputs if t is not None and t.requires_grad]
    with torch.enable_grad():
        out = formula(*inputs)
    found = torch.autograd.grad(
        out, needed, grad.to(out.dtype), create_graph=torch.is_grad_enabled(), allow_unused=True
    )
    found = iter(found)
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


def _double_setup_context(ctx, inputs, output):
    grad, input, bias, *ctx.parameters = inputs
    ctx.save_for_backward(grad, input, bias)


def _double_backward(ctx, grad):
    grads = differentiate(
        lambda g, x, b: _backward_formula(g, x, b, *ctx.parameters), ctx.saved_tensors, grad
    )
    return (*grads, None, None, None, None, None)


_GRADIENT = define(
    "_lrn_backward(Tensor grad, Tensor input, Tensor? bias, int size, float alpha, float beta, "
    "float k, bool relu) -> Tensor",
    impls=[
        _leaf_backward("cuda"),
        _leaf_backward("cpu"),
        Impl("reference", _reference_backward, _args.always),
    ],
    fake=lambda grad, input, *_: _args.empty(input.shape, input),
    setup_context=_double_setup_context,
    backward=_double_backward,
)

# --- public functions ------------------------------------------------------------------------


def _normalised(op: Op, input, *args):
    """Call a 4-D op on an input of any rank >= 3: the trailing dimensions are pixels."""
    if _args.is_batch(input):
        return op(input, *args)
    _args.check_input(input, dims=tuple(range(3, 9)))
    n, c, *pixels = input.shape
    # reshape keeps channels_last_3d without a copy: its pixels are one strided dimension.
    return op(input.reshape(n, c, 1, math.prod(pixels)), *args).reshape(input.shape)


def local_response_norm(
    input: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> torch.Tensor:
    """:func:`torch.nn.functional.local_response_norm`:
    ``input / (k + alpha / size * sum of squares over size neighbouring channels) ** beta``.

    Args:
        input: [N, C, ...] with at least 3 dimensions; float64 (reference), float32, float16 or
            bfloat16 (fp32 arithmetic, one rounding); contiguous or channels_last.
        size: channels in the window, size // 2 of them before the own one.
        alpha, beta, k: finite numbers.

    Returns a tensor of the input's shape, dtype and memory format. Only the input is kept for the
    backward pass.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    return _normalised(_LOCAL_RESPONSE_NORM, input, size, alpha, beta, k)


def relu_lrn(
    input: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> torch.Tensor:
    """``local_response_norm(relu(input), ...)`` in one pass; keeps only the input for backward.

    Arguments, result and errors as :func:`local_response_norm`.
    """
    return _normalised(_RELU_LRN, input, size, alpha, beta, k)


def bias_relu_lrn(
    input: torch.Tensor,
    bias: torch.Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> torch.Tensor:
    """``local_response_norm(relu(input + bias per channel), ...)`` in one pass, for a convolution
    run without its bias; keeps only its inputs for backward.

    Args:
        bias: [C], of the input's dtype and device. The sum is not rounded before the ReLU.

    The other arguments, result and errors as :func:`local_response_norm`.
    """
    return _normalised(_BIAS_RELU_LRN, input, bias, size, alpha, beta, k)
