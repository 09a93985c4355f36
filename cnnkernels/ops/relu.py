"""relu: torch.relu, keeping one bit per element for the backward pass where torch keeps the output."""

from __future__ import annotations

import torch

from . import _args
from ._op import Impl, define
from .add_relu import mask_backward, mask_setup_context, pack_mask


def _dense(input: torch.Tensor) -> torch.Tensor:
    """Dense memory of any order: the kernels walk it flat."""
    if input.is_contiguous() or input.is_contiguous(memory_format=torch.channels_last):
        return input
    return input.clone()  # dense, in the order torch.empty_like would give


def _reference(input: torch.Tensor) -> torch.Tensor:
    # torch gives an empty result other strides than torch.empty_like, which the fake promises.
    return torch.relu(input) if input.numel() else torch.empty_like(input)


def _reference_with_mask(input: torch.Tensor):
    out = _reference(_dense(input))
    return out, pack_mask(out)


def _leaf(device: str) -> Impl:
    name = f"_relu_mask_{device}"
    return Impl(
        device,
        lambda input: getattr(torch.ops.cnnkernels, name)(_dense(input)),
        lambda input: _args.leaf_why_not(name, input),
    )


def _check(input) -> tuple:
    _args.check_input(input, dims=tuple(range(9)))
    return ()


def _flops(input_shape, *args, out_shape=None, **kwargs) -> int:
    """A comparison is not counted."""
    return 0


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output)


def _backward(ctx, grad):
    (out,) = ctx.saved_tensors
    return torch.ops.aten.threshold_backward.default(grad, out, 0)


# Without a mask there is nothing to win on torch's own kernel.
_RELU = define(
    "relu(Tensor input) -> Tensor",
    impls=[Impl("reference", _reference, _args.always)],
    check=_check,
    fake=torch.empty_like,
    setup_context=_setup_context,
    backward=_backward,
    flops=_flops,
)

_WITH_MASK = define(
    "_relu_with_mask(Tensor input) -> (Tensor, Tensor)",
    impls=[_leaf("cuda"), _leaf("cpu"), Impl("reference", _reference_with_mask, _args.always)],
    check=_check,
    fake=lambda input: (
        torch.empty_like(input),
        input.new_empty((input.numel() + 7) // 8, dtype=torch.uint8),
    ),
    setup_context=mask_setup_context,
    backward=lambda ctx, *grads: mask_backward(ctx, *grads)[0],
    flops=_flops,
)


def relu(input: torch.Tensor) -> torch.Tensor:
    """:func:`torch.relu`, bit for bit, for a tensor of any shape (float64, float32, float16 or
    bfloat16).

    When a gradient is needed, one bit per element is kept for the backward pass instead of the
    output, which need not live until then (a convolution after it keeps its own input, though).

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    return _WITH_MASK(input)[0] if _args.needs_gradient(input) else _RELU(input)
