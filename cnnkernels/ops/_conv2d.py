"""The convolution ops' shared parts: argument checks, output geometry and every implementation.

An implementation takes (x, weight, bias, residual, stride, padding, dilation, groups, relu) and
returns relu?(conv2d(x, weight) + bias + residual). :func:`implementations` wraps each one so that
all of them take any strides and return the input's memory format; arguments are checked before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from .. import _lib, tuning
from .._triton import conv2d as _triton
from ..tuning import space
from . import _args
from . import _conv2d_stem as stem
from . import _conv2d_vendor as vendor
from ._op import Impl

# --- geometry --------------------------------------------------------------------------------


def check_geometry(x, weight, stride, padding, dilation, groups) -> tuple[list[int], ...]:
    """The three pairs as lists, after every check that needs no other tensor."""
    stride = _args.pair(stride, "stride", 1)
    padding = _args.pair(padding, "padding", 0)
    dilation = _args.pair(dilation, "dilation", 1)
    if not isinstance(groups, (int, torch.SymInt)) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"groups is {groups!r}; it must be an int of at least 1")
    channels, (k, cg, r, s) = x.shape[1], weight.shape
    if min(*x.shape[1:]) < 1:
        raise ValueError(f"input has shape {list(x.shape)}; only its batch may be empty")
    if min(k, cg, r, s) < 1:
        raise ValueError(f"weight has shape {list(weight.shape)}; no size may be 0")
    if k % groups:
        raise ValueError(f"weight has {k} output channels, not a multiple of groups={groups}")
    if channels != cg * groups:
        raise ValueError(
            f"input has {channels} channels, but weight {list(weight.shape)} with groups={groups}"
            f" takes {cg * groups}"
        )
    for i, (name, size, kernel) in enumerate((("high", x.shape[2], r), ("wide", x.shape[3], s))):
        span = dilation[i] * (kernel - 1) + 1
        if span > size + 2 * padding[i]:
            raise ValueError(
                f"weight's kernel is {kernel} {name} ({span} with dilation={dilation[i]}), more"
                f" than the padded input: {size} + 2 * {padding[i]}"
            )
    return stride, padding, dilation


def output_shape(x, weight, stride, padding, dilation) -> list[int]:
    """[N, K, P, Q] of the convolution."""
    sizes = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    ]
    return [x.shape[0], weight.shape[0], *sizes]


def check_operands(x, weight, bias, residual, shape) -> None:
    """Dtypes, devices and shapes of the tensors beside the input; ``shape`` is the output's."""
    for other, name in ((weight, "weight"), (bias, "bias"), (residual, "residual")):
        if other is not None:
            _args.check_same(x, other, name, shape=False)
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(f"bias has shape {list(bias.shape)}; it must be [{weight.shape[0]}]")
    if residual is not None and list(residual.shape) != shape:
        raise ValueError(f"residual has shape {list(residual.shape)}; it must be {shape}")


def check(x, weight, bias, residual, stride, padding, dilation, groups) -> tuple:
    """(stride, padding, dilation, groups), the pairs as lists, after all checks of an op call."""
    _args.check_input(x, dims=(4,))
    _args.check_input(weight, "weight", dims=(4,))
    pairs = check_geometry(x, weight, stride, padding, dilation, groups)
    check_operands(x, weight, bias, residual, output_shape(x, weight, *pairs))
    return *pairs, groups


def empty(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """An uninitialised output in x's memory format."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_args.memory_format(x))


def tuning_key(x, weight, residual, stride, padding, dilation, groups, relu) -> str:
    return tuning.conv_key(
        x.dtype, x.device.type, _args.memory_format(x) == torch.channels_last, x.shape,
        weight.shape, stride, padding, dilation, groups, residual is not None, relu,
    )  # fmt: skip


# --- compiled CUDA ---------------------------------------------------------------------------


def cuda_why_not(
    x, weight, bias, residual, stride, padding, dilation, groups, relu, pool=False, shortcut=()
) -> str | None:
    """Why the tensor-core kernels can't run (pool: with a 2x2 max-pool in the epilogue; shortcut:
    [C, H, W, stride, stride] of a projection added to it)."""
    reason = _args.leaf_why_not("_conv2d_cuda", x)
    if reason is not None:
        return reason
    if not hasattr(_lib.plan, "conv_why_not"):
        return _lib.plan_missing or "this build's planner knows no convolution"
    if stem.capability(x.device) != (9, 0):
        return "the tensor-core kernels are compiled for sm_90a"
    # A channel slice of x is read in place where it can be, and copied where not.
    if any(t is not None and t.data_ptr() % 16 for t in (weight, residual)) or (
        x.data_ptr() % 16 and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return "an operand does not start at 16 bytes, as TMA wants"
    if x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32:
        return "float32 runs in TF32, and torch.backends.cudnn.allow_tf32 is False"
    return _lib.plan.conv_why_not(
        list(x.shape), list(weight.shape), list(stride), list(padding), list(dilation), groups,
        str(x.dtype).removeprefix("torch."), _args.memory_format(x) == torch.channels_last,
        residual is not None, pool, *([list(shortcut)] if shortcut else []),
    ) or None  # fmt: skip


def _cuda_why_not(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    if stem.why_not(x, weight, residual, stride, padding, dilation, groups) is None:
        return None
    return cuda_why_not(x, weight, bias, residual, stride, padding, dilation, groups, relu)


def _cuda_plans(x, weight, residual, stride, padding, dilation, groups, pool=False) -> list[dict]:
    """How each instance of the tensor-core kernels would run, the planner's choice first."""
    gpu = x.device.type == "cuda" and torch.cuda.get_device_properties(x.device)
    return _lib.plan.conv_plans(
        list(x.shape), list(weight.shape), list(stride), list(padding), list(dilation), groups,
        str(x.dtype).removeprefix("torch."), residual is not None, pool,
        *([gpu.multi_processor_count] if gpu else []),
    )  # fmt: skip


def _cuda_configs(x, weight, bias, residual, stride, padding, dilation, groups, relu, pool=False):
    """Every instance of the tensor-core kernels that can run; the stem kernel has no choice."""
    if _cuda_why_not(x, weight, bias, residual, stride, padding, dilation, groups, relu) or (
        stem.why_not(x, weight, residual, stride, padding, dilation, groups) is None
    ):
        return []
    plans = _cuda_plans(x, weight, residual, stride, padding, dilation, groups, pool)
    return [{"instance": plan["instance"]} for plan in plans if plan["why_not"] is None]


def cuda_detail(
    x, weight, bias, residual, stride, padding, dilation, groups, relu, config=None, pool=False
) -> str:
    """Which kernel runs, in how many tiles, and the planner's estimate."""
    if stem.why_not(x, weight, residual, stride, padding, dilation, groups) is None:
        return "the stem kernel"
    plans = _cuda_plans(x, weight, residual, stride, padding, dilation, groups, pool)
    named = (config or {}).get("instance") or plans[0]["instance"]
    plan = next(plan for plan in plans if plan["instance"] == named)
    return f"{named}: {plan['reason']}"


def _cuda_held_back(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    """Why a stem kernel that could run is not the default."""
    taken = stem.why_not(x, weight, residual, stride, padding, dilation, groups) is None
    return stem.unverified(x, weight) if taken else None


def readable(x: torch.Tensor) -> torch.Tensor:
    """x itself where TMA can read it (a channel slice too: its pixels lie further apart), or a dense
    copy."""
    if _args.is_channel_slice(x) and not (x.data_ptr() | x.stride(3) * x.element_size()) % 16:
        return x
    return _args.dense(x)


def _cuda(x, weight, bias, residual, stride, padding, dilation, groups, relu, config=None):
    if stem.why_not(x, weight, residual, stride, padding, dilation, groups) is None:
        x = _args.dense(x)
        return torch.ops.cnnkernels._conv2d_stem_cuda(x, weight, bias, stride, padding, relu)
    x = readable(x)
    instance = (config or {}).get("instance", "")
    return torch.ops.cnnkernels._conv2d_cuda(
        x, weight, bias, residual, stride, padding, dilation, groups, relu, instance
    )


# --- Triton ----------------------------------------------------------------------------------


def problem(x, weight, stride, padding, dilation, groups, residual=False, pool=False) -> space.Conv:
    """The call's geometry for the config space; hashable."""
    return space.Conv(
        *x.shape, weight.shape[0], *weight.shape[2:], tuple(stride), tuple(padding),
        tuple(dilation), groups, _args.memory_format(x) == torch.channels_last, x.element_size(),
        residual, pool,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def triton_configs(conv: space.Conv, device: torch.device, tf32: bool) -> list[dict]:
    """The config space on this device; the interpreter gets a GPU's, so that tests cover it."""
    if device.type != "cuda":
        return space.conv_configs(conv, tf32=tf32)
    gpu = torch.cuda.get_device_properties(device)
    return space.conv_configs(
        conv, 10 * gpu.major + gpu.minor, gpu.multi_processor_count, tf32=tf32
    )


def triton_configs_of(
    x, weight, bias, residual, stride, padding, dilation, groups, relu, pool=False
) -> list[dict]:
    """The config space of a call."""
    conv = problem(x, weight, stride, padding, dilation, groups, residual is not None, pool)
    return triton_configs(conv, x.device, _tf32(x))


def _tf32(x) -> bool:
    return x.device.type == "cuda" and torch.backends.cudnn.allow_tf32


def triton_why_not(x, weight, bias, residual, stride, padding, dilation, groups, relu):
    reason = _args.triton_why_not(x)
    if reason is None and max(x[:1].numel(), weight.numel()) >= 2**31:
        return "one image or the weight has 2^31 elements or more"
    return reason


def triton_conv2d(
    x, weight, bias, residual, stride, padding, dilation, groups, relu, config=None, pool=False,
    out=None,
):  # fmt: skip
    """Dense operands; pool: with a 2x2/2 max-pool in the epilogue, odd edges dropped; out: where to
    write, for instance a slice of a wider tensor's channels."""
    geometry = stride, padding, dilation, groups
    if config is None:
        config = triton_configs_of(x, weight, bias, residual, *geometry, relu, pool)[0]
    if config["kind"] != "pointer":
        given = [] if config["kind"] == "stem" else [x]  # a stem rearranges x first
        given += [t for t in (residual, out) if t is not None]
        if _triton.descriptor_why_not(*given) is not None:  # a view at an odd offset
            config = space.pointer_configs(problem(x, weight, *geometry, pool=pool))[0]
    return _triton.conv2d(
        x, weight, bias, residual, *geometry, relu,
        config=config, precision="tf32" if _tf32(x) else "ieee", out=out, pool=pool,
    )  # fmt: skip


# --- the list --------------------------------------------------------------------------------


def _wrap(fn: Callable, slices: bool = False) -> Callable:
    """fn with dense operands in x's memory format, and such an output. ``slices``: fn takes a channel
    slice of a channels_last tensor as it is."""

    @functools.wraps(fn)
    def run(x, weight, bias, residual, stride, padding, dilation, groups, relu, **config):
        if x.shape[0] == 0:
            return empty(x, output_shape(x, weight, stride, padding, dilation))
        layout = _args.memory_format(x)
        if not (slices and _args.is_channel_slice(x)):
            x = x.contiguous(memory_format=layout)
        if residual is not None:
            residual = residual.contiguous(memory_format=layout)
        out = fn(x, weight, bias, residual, stride, padding, dilation, groups, relu, **config)
        return out.contiguous(memory_format=layout)

    return run


def implementations(*, residual: bool, relu: bool) -> list[Impl]:
    """The Impls of one op: their functions take (input, weight[, residual], bias, geometry…)."""

    def arguments(fn: Callable) -> Callable:
        if residual:
            return lambda x, weight, z, bias, *geometry, **config: fn(
                x, weight, bias, z, *geometry, relu, **config
            )
        return lambda x, weight, bias, *geometry, **config: fn(
            x, weight, bias, None, *geometry, relu, **config
        )

    def impl(name, fn, why_not, slices=False, **functions) -> Impl:
        functions = {key: arguments(f) for key, f in functions.items()}
        return Impl(name, arguments(_wrap(fn, slices)), arguments(why_not), **functions)

    compiled = {"configs": _cuda_configs, "held_back": _cuda_held_back, "detail": cuda_detail}
    return [
        impl("cuda", _cuda, _cuda_why_not, slices=True, **compiled),
        impl("cudnn", vendor.cudnn, vendor.cudnn_why_not),
        impl("cpu", vendor.cpu, vendor.cpu_why_not),
        # After cpu: on CPU tensors it is Triton's interpreter.
        impl("triton", triton_conv2d, triton_why_not, configs=triton_configs_of),
        Impl("reference", arguments(_wrap(vendor.reference)), _args.always),
    ]
