"""Is the optimised model the model? Both run on the same inputs; the errors decide."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .capture import with_batch
from .report import OutputError

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


class NotEqual(RuntimeError):
    """The optimised model differs from the original; the message names the first layer that does."""


def default_tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """The tolerance for a model of this dtype; fp32 on a GPU is TF32 where torch allows it, whose
    roundings are 2**-11, and kernels differ in whether they round or truncate."""
    if dtype == torch.float32 and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return 1e-3
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])


def relative_error(value, reference) -> float:
    """max |value − reference| / max |reference|; infinite where NaN, ∞, shape or kind differ."""
    if not isinstance(reference, torch.Tensor) or not isinstance(value, torch.Tensor):
        return 0.0 if value == reference else float("inf")
    if value.shape != reference.shape:
        return float("inf")
    if not reference.is_floating_point():
        return 0.0 if torch.equal(value, reference) else float("inf")
    if reference.numel() == 0:
        return 0.0
    value, reference = value.double(), reference.double()
    finite = reference.isfinite()
    if not bool(finite.all()):
        others = ~finite
        if not torch.equal(
            value[others].nan_to_num(7.0), reference[others].nan_to_num(7.0)
        ):  # NaN equals NaN, ∞ equals ∞
            return float("inf")
        value, reference = value[finite], reference[finite]
        if reference.numel() == 0:
            return 0.0
    difference = (value - reference).abs().max().item()
    scale = reference.abs().max().item()
    if difference != difference:
        return float("inf")
    return difference / scale if scale > 0 else difference


@contextlib.contextmanager
def full_precision():
    """fp32 that is fp32: no TF32."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(allow_tf32=False, benchmark=False):
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = matmul


def _cast(tree, dtype: torch.dtype):
    return pytree.tree_map(
        lambda t: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t, tree
    )


def model_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model itself where it is in ``dtype`` already, otherwise a copy that is."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(t.dtype == dtype for t in tensors if t.is_floating_point()):
        return model
    return copy.deepcopy(model).to(dtype)


def run_original(model: nn.Module, flat: list, in_spec, dtype: torch.dtype, autocast=None) -> list:
    """The flat outputs of ``model`` (already in ``dtype``) on copies of the inputs."""
    flat = [t.clone() if isinstance(t, torch.Tensor) else t for t in flat]
    args, kwargs = pytree.tree_unflatten(flat, in_spec)
    if autocast is None:
        args, kwargs = _cast((args, kwargs), dtype)
    device = next((t.device.type for t in flat if isinstance(t, torch.Tensor)), "cpu")
    with torch.no_grad(), torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        return pytree.tree_leaves(model(*args, **kwargs))


def input_sets(flat: list, dynamic: bool) -> list[tuple[str, list]]:
    """The example inputs, random ones like them, and random ones of another batch size."""
    generator = torch.Generator().manual_seed(0)

    def random(t):
        if not isinstance(t, torch.Tensor) or not t.is_floating_point() or t.numel() < 2:
            return t
        noise = torch.randn(t.shape, generator=generator).to(t.device, t.dtype)
        mean, std = t.double().mean().item(), t.double().std().item()
        return noise * (std if 0 < std < float("inf") else 1.0) + (mean if mean == mean else 0.0)

    sets = [("example inputs", flat)]
    if any(isinstance(t, torch.Tensor) and t.is_floating_point() for t in flat):
        sets.append(("random inputs", [random(t) for t in flat]))
    first = next((t for t in flat if isinstance(t, torch.Tensor)), None)
    if dynamic and first is not None and first.shape[0] > 0:
        other = 3 if first.shape[0] == 2 else 2
        sets.append((f"random inputs, batch {other}", [random(t) for t in with_batch(flat, other)]))
    return sets


def prove(plan, model, flat, dynamic, tolerance, autocast=None):
    """(errors, outputs of the original) of ``plan`` against ``model``; raises NotEqual.

    The limit for each output is ``tolerance``, or twice the original's own error at this dtype
    where that is larger.
    """
    wide = torch.float64 if plan.dtype == torch.float64 else torch.float32
    reference_model = model_in(model, wide)
    own_model = model if autocast is not None else model_in(model, plan.dtype)
    errors, own_outputs = [], None
    cuda = plan.device.type == "cuda"
    for label, inputs in input_sets(flat, dynamic):
        try:
            with full_precision() if cuda else contextlib.nullcontext():
                expected = run_original(reference_model, inputs, plan.in_spec, wide)
        except RuntimeError:
            if "batch" not in label:
                raise
            plan.dynamic_batch = False  # the model itself takes no other batch
            continue
        own = expected
        tf32 = cuda and plan.dtype == torch.float32
        if own_model is not reference_model or autocast is not None or tf32:
            own = run_original(own_model, inputs, plan.in_spec, plan.dtype, autocast)
        own_outputs = own if own_outputs is None else own_outputs
        got = plan.run_flat(inputs)
        if len(got) != len(expected):
            raise NotEqual(f"{len(got)} outputs, but the original has {len(expected)}")
        for i, (value, original, reference) in enumerate(zip(got, own, expected)):
            own_error = relative_error(original, reference)
            if own_error == float("inf"):  # overflow in the original: its values are the standard
                reference, own_error = original, 0.0
            error = relative_error(value, reference)
            limit = max(tolerance, 2 * own_error)
            errors.append(OutputError(i, label, error, own_error, limit))
            if not error <= limit:
                layer = first_difference(plan, inputs, limit)
                if wide == torch.float32:
                    layer += _conditioning(model, inputs, plan.in_spec, i, reference)
                raise NotEqual(
                    f"output {i} on {label} differs from the original by {error:.2e} of its largest"
                    f" value; at most {limit:.2e} is allowed. {layer}"
                )
    return errors, own_outputs


def _conditioning(model, inputs: list, in_spec, output: int, reference) -> str:
    """A sentence on how far fp32 itself is off, where it is: such outputs prove nothing."""
    exact = run_original(model_in(model, torch.float64), inputs, in_spec, torch.float64)[output]
    own = relative_error(reference, exact)
    return f" The original in fp32 differs from fp64 by {own:.2e} itself." if own > 1e-5 else ""


@torch.no_grad()
def first_difference(plan, inputs: list, limit: float) -> str:
    """A sentence naming the first layer whose value isn't the captured graph's in fp32."""
    reference = reference_values(plan, inputs)
    found: list[str] = []

    def see(node, value):
        origin = node.meta.get("origin")
        if found or node.op != "call_function" or origin not in reference:
            return
        expected = reference[origin]
        if isinstance(expected, torch.Tensor) and isinstance(value, torch.Tensor):
            error = relative_error(value, expected)
            if not error <= limit:
                layers = " + ".join(node.meta["layers"])
                found.append(
                    f"The first layer that differs is {layers!r} ({node.target}): by {error:.2e}."
                )

    plan.program.trace(plan.cast(inputs), see)
    return found[0] if found else "No single layer differs: the captured graph isn't the model."


def reference_values(plan, inputs: list) -> dict:
    """Values of the captured graph, before any rewrite, in fp32 (fp64 for fp64), by node name."""
    net = plan.captured
    wide = torch.float64 if plan.dtype == torch.float64 else torch.float32
    values: dict = {}
    env: dict = {}
    flat = iter(_cast(list(inputs), wide))
    for node in net.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(flat)
        elif node.op == "get_attr":
            env[node] = _cast(net.masters[node.target], wide)
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), env.__getitem__)
            args = tuple(
                wide if isinstance(a, torch.dtype) and a.is_floating_point else a for a in args
            )
            env[node] = values[node.meta["origin"]] = node.target(*args, **kwargs)
    return values
