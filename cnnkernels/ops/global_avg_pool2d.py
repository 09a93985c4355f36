"""global_avg_pool2d: the mean of each plane (Lin et al. 2013, "Network In Network", section 3.2)."""

from __future__ import annotations

import math

import torch

from . import _args
from ._op import Impl, define

# --- reference: plain PyTorch, every dtype ---------------------------------------------------


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Sums are in fp32; in fp64 for fp64."""
    return dtype if dtype == torch.float64 else torch.float32


def _reference(input: torch.Tensor) -> torch.Tensor:
    mean = input.mean((2, 3), keepdim=True, dtype=_wide(input.dtype)).to(input.dtype)
    return _args.laid_out(mean, input)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _reference_backward(grad, input_size, channels_last: bool) -> torch.Tensor:
    share = grad.to(_wide(grad.dtype)) / (input_size[2] * input_size[3])
    out = _backward_fake(grad, input_size, channels_last)
    return out.copy_(share.expand(input_size))


def _backward_fake(grad, input_size, channels_last: bool) -> torch.Tensor:
    return torch.empty(
        input_size, dtype=grad.dtype, device=grad.device, memory_format=_format(channels_last)
    )


# --- compiled implementations ----------------------------------------------------------------


def _leaf(device: str) -> Impl:
    name = f"_global_avg_pool2d_{device}"
    return Impl(
        device,
        lambda input: getattr(torch.ops.cnnkernels, name)(_args.dense(input)),
        lambda input: _args.leaf_why_not(name, input),
    )


def _leaf_backward(device: str) -> Impl:
    name = f"_global_avg_pool2d_backward_{device}"
    return Impl(
        device,
        lambda grad, *args: getattr(torch.ops.cnnkernels, name)(grad.contiguous(), *args),
        lambda grad, *_: _args.leaf_why_not(name, grad),
    )


# --- the ops ---------------------------------------------------------------------------------


def _check(input, dims=(4,)) -> tuple:
    _args.check_input(input, dims=dims)
    if any(size == 0 for size in input.shape[-2:]):
        raise ValueError(f"input has shape {list(input.shape)}; height and width can't be 0")
    return ()


def _fake(input):
    return _args.empty([*input.shape[:2], 1, 1], input)


def _flops(input_shape, *args, out_shape=None, **kwargs) -> int:
    """One addition per element (and a division per plane, not counted)."""
    return math.prod(input_shape)


def _setup_context(ctx, inputs, output):
    (input,) = inputs
    ctx.input_size = input.shape
    ctx.channels_last = _args.memory_format(input) == torch.channels_last


def _backward(ctx, grad):
    return _GRADIENT(grad, ctx.input_size, ctx.channels_last)


_MEAN = define(
    "global_avg_pool2d(Tensor input) -> Tensor",
    impls=[
        _leaf("cuda"),
        _leaf("cpu"),
        _args.triton_impl(
            "global_avg_pool2d",
            "global_avg_pool2d",
            lambda kernel, input: kernel(_args.dense(input)),
        ),
        Impl("reference", _reference, _args.always),
    ],
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    flops=_flops,
)

_GRADIENT = define(
    "_global_avg_pool2d_backward(Tensor grad, SymInt[] input_size, bool channels_last) -> Tensor",
    impls=[
        _leaf_backward("cuda"),
        _leaf_backward("cpu"),
        Impl("reference", _reference_backward, _args.always),
    ],
    fake=_backward_fake,
    # Linear, and its adjoint is the mean again.
    setup_context=lambda ctx, inputs, output: None,
    backward=lambda ctx, grad: (_MEAN(grad), None, None),
)

# --- public function -------------------------------------------------------------------------


def global_avg_pool2d(input: torch.Tensor) -> torch.Tensor:
    """``torch.nn.functional.adaptive_avg_pool2d(input, 1)``: the mean over height and width.

    Args:
        input: [N, C, H, W] or [C, H, W]; float64 (reference), float32, float16 or bfloat16 (fp32
            sums, one rounding); contiguous or channels_last.

    Returns [N, C, 1, 1] or [C, 1, 1] in the input's dtype. Nothing is kept for the backward pass.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    if _args.is_batch(input):
        return _MEAN(input)
    _check(input, dims=(3, 4))
    return _MEAN(input.unsqueeze(0)).squeeze(0)
