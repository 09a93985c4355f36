"""add_relu: the residual connection's sum and ReLU in one pass (He et al. 2015, equation 1).

The worked example of an op, read top to bottom: reference, implementations, schemas with their
fake, autograd, autocast and FLOPs, and the public function.
"""

from __future__ import annotations

import torch

from .._triton import add_relu as _triton
from . import _args
from ._op import Impl, define

# --- reference: plain PyTorch, every dtype ---------------------------------------------------


def _flat(x: torch.Tensor) -> torch.Tensor:
    """A dense tensor's elements in memory order."""
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def _reference(input: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    return torch.add(input, residual, out=torch.empty_like(input)).relu_()


def pack_mask(out: torch.Tensor) -> torch.Tensor:
    """Bit e of byte j: element 8j + e of dense ``out``, in memory order, is > 0 or NaN."""
    bits = ~(_flat(out) <= 0)  # NaN passes, as in torch.relu
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=out.device)
    return (bits * weights).sum(1, dtype=torch.uint8)


def _reference_with_mask(input: torch.Tensor, residual: torch.Tensor):
    out = _reference(input, residual)
    return out, pack_mask(out)


def _reference_backward(grad: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = (mask[:, None] >> shifts & 1).flatten()[: grad.numel()].bool()
    grad_input = torch.zeros_like(grad)
    _flat(grad_input)[bits] = _flat(grad)[bits]
    return grad_input


# --- compiled implementations ----------------------------------------------------------------


def _operands(input: torch.Tensor, residual: torch.Tensor):
    """Both dense and in one memory order: the kernels walk flat memory."""
    if not (input.is_contiguous() or input.is_contiguous(memory_format=torch.channels_last)):
        input = input.clone()  # dense, in the order torch.empty_like would give
    if residual.stride() != input.stride():
        residual = torch.empty_like(input).copy_(residual)
    return input, residual


def _leaf(device: str, with_mask: bool) -> Impl:
    def fn(input, residual):
        leaf = getattr(torch.ops.cnnkernels, f"_add_relu_{device}")
        out, mask = leaf(*_operands(input, residual), with_mask)
        return (out, mask) if with_mask else out

    return Impl(
        device, fn, lambda input, residual: _args.leaf_why_not(f"_add_relu_{device}", input)
    )


def _leaf_backward(device: str) -> Impl:
    return Impl(
        device,
        lambda grad, mask: getattr(torch.ops.cnnkernels, f"_relu_backward_mask_{device}")(
            grad, mask
        ),
        lambda grad, mask: _args.leaf_why_not(f"_relu_backward_mask_{device}", grad),
    )


_triton_impl = Impl(
    "triton",
    lambda input, residual: _triton.add_relu(*_operands(input, residual)),
    lambda input, residual: _args.triton_why_not(input),
)

# --- the ops ---------------------------------------------------------------------------------


def _check(input, residual) -> tuple:
    _args.check_input(input, dims=tuple(range(9)))
    _args.check_input(residual, "residual", dims=(input.dim(),))
    _args.check_same(input, residual, "residual")
    return ()


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output)


def _backward(ctx, grad):
    (out,) = ctx.saved_tensors
    grad = torch.ops.aten.threshold_backward.default(grad, out, 0)
    return grad, grad


def _flops(input_shape, residual_shape, *args, out_shape=None, **kwargs) -> int:
    """One addition per element; the comparison is not counted."""
    n = 1
    for size in input_shape:
        n *= size
    return n


_ADD_RELU = define(
    "add_relu(Tensor input, Tensor residual) -> Tensor",
    impls=[
        _leaf("cuda", with_mask=False),
        _leaf("cpu", with_mask=False),
        _triton_impl,  # after cpu: on CPU tensors it is Triton's interpreter
        Impl("reference", _reference, _args.always),
    ],
    check=_check,
    fake=lambda input, residual: torch.empty_like(input),
    setup_context=_setup_context,
    backward=_backward,
    autocast="promote",
    flops=_flops,
)


def mask_setup_context(ctx, inputs, output):
    out, mask = output
    ctx.mark_non_differentiable(mask)
    ctx.save_for_backward(mask)
    ctx.out_stride = out.stride()


def mask_backward(ctx, grad, _grad_mask):
    (mask,) = ctx.saved_tensors
    if grad.stride() != ctx.out_stride:  # the mask is in the output's memory order
        grad = torch.empty_strided(
            grad.shape, ctx.out_stride, dtype=grad.dtype, device=grad.device
        ).copy_(grad)
    grad = _GRADIENT(grad, mask)
    return grad, grad


_WITH_MASK = define(
    "_add_relu_with_mask(Tensor input, Tensor residual) -> (Tensor, Tensor)",
    impls=[
        _leaf("cuda", with_mask=True),
        _leaf("cpu", with_mask=True),
        Impl("reference", _reference_with_mask, _args.always),
    ],
    check=_check,
    fake=lambda input, residual: (
        torch.empty_like(input),
        input.new_empty((input.numel() + 7) // 8, dtype=torch.uint8),
    ),
    setup_context=mask_setup_context,
    backward=mask_backward,
    autocast="promote",
    flops=_flops,
)


def _double_setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.grad_stride = inputs[0].stride()


def _double_backward(ctx, grad):
    # The mask is constant, so the op is linear in grad and is its own derivative.
    (mask,) = ctx.saved_tensors
    if grad.stride() != ctx.grad_stride:
        grad = torch.empty_strided(
            grad.shape, ctx.grad_stride, dtype=grad.dtype, device=grad.device
        ).copy_(grad)
    return _GRADIENT(grad, mask), None


_GRADIENT = define(
    "_relu_backward_mask(Tensor grad, Tensor mask) -> Tensor",
    impls=[
        _leaf_backward("cuda"),
        _leaf_backward("cpu"),
        Impl("reference", _reference_backward, _args.always),
    ],
    fake=lambda grad, mask: torch.empty_like(grad),
    setup_context=_double_setup_context,
    backward=_double_backward,
)

# --- public function -------------------------------------------------------------------------


def add_relu(input: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """``relu(input + residual)`` in one pass over memory.

    Args:
        input: tensor of any shape; float64 (reference), float32, float16 or bfloat16.
        residual: tensor of the input's shape, dtype and device.

    Returns a tensor of the input's shape, dtype and memory format, bit-equal to
    ``torch.relu(input + residual)``. NaN passes through, as in :func:`torch.relu`.

    When a gradient is needed, one bit per element is kept for the backward pass instead of a tensor.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    if _args.needs_gradient(input, residual):
        return _WITH_MASK(input, residual)[0]
    return _ADD_RELU(input, residual)
