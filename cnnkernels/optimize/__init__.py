"""``cnnkernels.optimize(model, example_inputs)``: a faster form of a CNN, proved equal first.

The package is callable. How it works: capture (torch.export) → passes (one file each) → program (one
choice of implementation per operation and shape) → proof (both run, errors compared).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from . import dynamo
from .layers import replace_layers
from .model import OptimizedModel
from .net import Unsupported
from .passes import OPTIONAL
from .plan import Plan
from .proof import NotEqual, default_tolerance, prove
from .report import Report

__all__ = ["NotEqual", "OptimizedModel", "Report", "optimize", "replace_layers"]

LAYOUTS = ("auto", "channels_last", "contiguous")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def optimize(
    model: nn.Module,
    example_inputs: torch.Tensor | Sequence | Mapping,
    *,
    dtype: torch.dtype | None = None,
    layout: str = "auto",
    tolerance: float | None = None,
    graph: bool | str = "auto",
    passes: Collection[str] = (),
    report: Callable[[Report], None] | None = None,
) -> OptimizedModel:
    """A module that computes what ``model`` computes in inference, faster; the model stays as it is.

    Batch norm is folded into convolutions; convolutions take their ReLU, residual sum and pooling
    along; local response normalisation, max-pooling and global averages run on this package's
    operations; dropout and identities go; one memory format is used throughout. On a GPU the whole
    is captured as a CUDA graph per input shape.

    Args:
        model: in eval mode, its weights on one device; may be wrapped in DistributedDataParallel.
        example_inputs: a tensor, a tuple of positional or a dict of keyword inputs. Calls may have
            any batch size where the model allows that (``report.dynamic_batch``), but otherwise
            these shapes; other calls run the original model.
        dtype: float32, float16, bfloat16 or float64 to compute in; inputs are cast to it and
            outputs have it. None: the model's own. Under autocast a plan in autocast's dtype runs.
        layout: "channels_last", "contiguous", or "auto": the faster one on the example (CPU),
            channels_last (GPU).
        tolerance: largest accepted error of an output, as max |difference| / max |value| against
            the original in fp32 (fp64 for fp64 models). None: 1e-10 (fp64), 1e-4 (fp32), 2e-2
            (fp16), 1e-1 (bf16). Where the original's own error at this dtype is over half of it,
            twice that error is accepted.
        graph: True captures CUDA graphs, False none; "auto" does on a GPU, and where a capture fails
            runs without and notes why.
        passes: which of the optional rewrites run: "merge" (convolutions of one input become one),
            "concat" (branches written into their concatenation), "split" (with both: a merged
            convolution writes its first branch there itself; GPU), "projection" (a residual block's
            projection shortcut in its last convolution; GPU), "pair" (a bottleneck's last convolution
            and the next one's first; GPU). None of them by default: on a CPU they gain nothing, on a
            GPU their kernels haven't been timed in these forms.
        report: called with the :class:`Report` before returning; it also is ``result.report``.

    Returns an :class:`OptimizedModel`. A model that can't be captured (data-dependent control flow,
    forward hooks, random numbers, …) is left alone: the result calls it, and ``report.reason`` says why.

    Raises:
        NotEqual: an output is past the tolerance; the message names the first layer that differs.
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    args, kwargs = _check(model, example_inputs, dtype, layout, tolerance, graph, passes)
    original, model = model, unwrap(model)

    def build(args, kwargs, dtype, autocast=None):
        return _build(model, args, kwargs, dtype, layout, tolerance, graph, passes, autocast)

    found = Report()
    try:
        plan, errors, _ = build(args, kwargs, dtype)
        found = plan.net.report
        found.errors = errors
    except Unsupported as error:
        plan, found.reason = None, str(error)
    result = OptimizedModel(original if plan is None else model, plan, found, build)
    if report is not None:
        report(found)
    return result


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def _build(model, args, kwargs, dtype, layout, tolerance, graph, passes, autocast):
    """(plan, errors, the original's outputs), proved; raises Unsupported or NotEqual."""
    plan = Plan(model, args, kwargs, dtype=dtype, layout="contiguous", graph=graph, optional=passes)
    flat = [t.detach() if isinstance(t, torch.Tensor) else t for t in _flatten(args, kwargs)]
    reason = plan.why_not(flat)
    if reason is not None:
        raise Unsupported(f"example_inputs: {reason}")
    plan.choose_layout(layout, flat)
    limit = default_tolerance(plan.dtype, plan.device) if tolerance is None else tolerance
    errors, own = prove(plan, model, flat, plan.dynamic_batch, limit, autocast)
    plan.finish()
    plan.describe()
    return plan, errors, own


def _flatten(args, kwargs) -> list:
    return torch.utils._pytree.tree_leaves((args, kwargs))


def _check(model, example_inputs, dtype, layout, tolerance, graph, passes):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, OptimizedModel):
        raise TypeError("model is an OptimizedModel already; pass the original")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed are None, {', '.join(map(str, DTYPES))}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; allowed are {', '.join(LAYOUTS)}")
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance!r}; it must be None or a number of at least 0")
    if graph not in (True, False, "auto"):
        raise ValueError(f"graph is {graph!r}; allowed are True, False and 'auto'")
    if isinstance(passes, str) or not set(passes) <= set(OPTIONAL):
        raise ValueError(f"passes is {passes!r}; allowed are collections of {[*OPTIONAL]}")
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        args, kwargs = tuple(example_inputs), {}
    else:
        raise TypeError(
            "example_inputs must be a tensor, a tuple or list of inputs, or a dict of keyword"
            f" inputs; got {type(example_inputs).__name__}"
        )
    tensors = [t for t in _flatten(args, kwargs) if isinstance(t, torch.Tensor)]
    if not tensors:
        raise ValueError("example_inputs has no tensor")
    if graph is True and any(t.device.type != "cuda" for t in tensors):
        raise ValueError("graph is True; CUDA graphs need inputs on a GPU (allowed: 'auto', False)")
    for t in tensors:
        if t.dim() and not t.shape[0]:
            raise ValueError(
                f"example_inputs has a tensor of shape {list(t.shape)}: an empty batch"
            )
    return args, kwargs


class _Callable(types.ModuleType):
    """Makes ``cnnkernels.optimize(model, ...)`` and ``cnnkernels.optimize.report`` both work."""

    def __call__(self, *args, **kwargs):
        return optimize(*args, **kwargs)

    __doc__ = optimize.__doc__


sys.modules[__name__].__class__ = _Callable
dynamo.register()
