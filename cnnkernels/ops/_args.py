"""Argument checks, layouts and the reasons why an implementation can't run, shared by the ops."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from .. import _lib
from ._op import Impl

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_input(x: torch.Tensor, name: str = "input", dims: tuple[int, ...] = (3, 4)) -> None:
    """Raise TypeError or ValueError unless x is a floating tensor of an allowed rank."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} has dtype {x.dtype}; allowed are {', '.join(map(str, FLOATS))}")
    if x.dim() not in dims:
        allowed = " or ".join(map(str, dims))
        raise ValueError(f"{name} has shape {list(x.shape)}; it must have {allowed} dimensions")


def is_batch(x) -> bool:
    """Whether x, not checked yet, is a tensor of four dimensions: the form that the ops take."""
    return isinstance(x, torch.Tensor) and x.dim() == 4


def check_same(x: torch.Tensor, other: torch.Tensor, name: str, *, shape: bool = True) -> None:
    """Raise ValueError unless other has x's device and dtype (and shape)."""
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device}, but the input is on {x.device}")
    if other.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"{name} has dtype {other.dtype}, but the input has {x.dtype}")
    if shape and other.shape != x.shape:
        raise ValueError(f"{name} has shape {list(other.shape)}; it must be {list(x.shape)}")


def needs_gradient(*tensors) -> bool:
    """Whether autograd follows an op on ``tensors``, which are not checked yet."""
    return torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in tensors)


def pair(value, name: str, minimum: int) -> list[int]:
    """An int or a pair of ints as [h, w]; ValueError when one is below ``minimum``."""
    values = list(value) if isinstance(value, (tuple, list, torch.Size)) else [value, value]
    if len(values) == 1:
        values *= 2
    if len(values) != 2 or not all(
        isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in values
    ):
        raise ValueError(f"{name} is {value!r}; it must be an int or a pair of ints")
    if any(v < minimum for v in values):
        raise ValueError(f"{name} is {value!r}; it must be at least {minimum}")
    return values


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """channels_last when x is so in memory (or a channel slice of such a tensor) and not also
    contiguous; for dense tensors the rule of layout_of() in C++."""
    if (
        x.dim() == 4
        and not x.is_contiguous()
        and (x.is_contiguous(memory_format=torch.channels_last) or is_channel_slice(x))
    ):
        return torch.channels_last
    return torch.contiguous_format


def is_channel_slice(x: torch.Tensor) -> bool:
    """Whether the 4-D x is some of the channels of a wider channels_last tensor: ``wide[:, a:b]``."""
    _, c, h, w = x.shape
    n_stride, c_stride, h_stride, pitch = x.stride()
    return (
        1 < c < pitch and w > 1 and c_stride == 1 and h_stride == w * pitch
        and n_stride == h * h_stride
    )  # fmt: skip


def dense(x: torch.Tensor) -> torch.Tensor:
    """x itself when contiguous or channels_last, otherwise a dense copy."""
    return x.contiguous(memory_format=memory_format(x))


def in_format_of(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x (any strides) in the memory format of ``like``."""
    return x.contiguous(memory_format=memory_format(like))


def empty(shape, like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised 4-D tensor on ``like``'s device in its memory format."""
    return torch.empty(
        shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format(like)
    )


def laid_out(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x with exactly the strides of a fresh tensor of its shape in ``like``'s memory format, which
    is what the fakes promise (``contiguous`` leaves the strides of dimensions of size 1)."""
    out = empty(x.shape, like, x.dtype)
    return x if x.stride() == out.stride() else out.copy_(x)


def leaf_why_not(leaf: str, x: torch.Tensor) -> str | None:
    """Why the compiled leaf op can't run on x's device and dtype."""
    device = "cuda" if leaf.endswith("_cuda") else "cpu"
    if x.device.type != device:
        return f"the input is on {x.device}"
    if not _lib.has_leaf(leaf):
        missing = _lib.cuda_missing if device == "cuda" else _lib.cpu_missing
        return missing or f"this build has no {leaf}"
    if x.dtype not in KERNEL_DTYPES:
        return f"no compiled kernel for {x.dtype}"
    return None


def triton_why_not(x: torch.Tensor) -> str | None:
    """Why no Triton kernel can run on x: no Triton, no GPU (nor its interpreter), dtype."""
    try:
        import triton
    except ImportError as error:
        return f"triton does not import: {error}"
    if x.device.type != "cuda" and not triton.knobs.runtime.interpret:
        return f"the input is on {x.device} (TRITON_INTERPRET=1 would run it in the interpreter)"
    if x.dtype not in KERNEL_DTYPES:
        return f"no Triton kernel for {x.dtype}"
    return None


def triton_impl(stem: str, function: str, fn: Callable, why_not: Callable | None = None) -> Impl:
    """The Triton implementation ``_triton/<stem>.py: function``: ``fn`` gets it as first argument,
    then the op's arguments. ``why_not`` adds conditions of its own."""
    missing, kernel = None, None
    try:
        kernel = getattr(importlib.import_module(f"cnnkernels._triton.{stem}"), function)
    except (ImportError, AttributeError) as error:  # no Triton, or no kernel of this stem
        missing = f"no Triton kernel: {error}"

    def reason(input, *args):
        return missing or triton_why_not(input) or (why_not and why_not(input, *args))

    return Impl("triton", lambda *args: fn(kernel, *args), reason)


def always(*_args) -> None:
    """why_not of a reference."""
