"""The per-layer table of a network: sizes, memory, parameters, operations, receptive field, depth.

The network runs once on the meta device: nothing is computed or allocated. Modules that
:mod:`.layers` knows give rows; everything else is followed from function call to function call.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .layers import Step, pair, steps
from .receptive_field import Field, Pair, join


@dataclass(frozen=True)
class Row:
    """One layer. ``output`` is one picture's; counts of elements, bytes and operations are the batch's."""

    name: str
    type: str
    output: tuple[int, ...]
    elements: int
    bytes: int
    input_bytes: int
    weights: int
    biases: int
    macs: int
    flops: int
    receptive_field: Pair
    jump: Pair
    depth: int
    fused: bool  # a fused kernel keeps this output on the chip

    @property
    def parameters(self) -> int:
        return self.weights + self.biases


@dataclass(frozen=True)
class Report:
    """The table of a network."""

    model: str
    variant: str
    input_size: tuple[int, ...]  # of one picture
    batch: int
    itemsize: int  # bytes per element
    rows: tuple[Row, ...]
    parameters: int  # trainable, of the whole model, also of parts that did not run
    fixed: int  # elements of persistent buffers that are not trained

    @property
    def input_elements(self) -> int:
        return self.batch * math.prod(self.input_size)

    @property
    def activations(self) -> int:
        """Elements of the input and every layer's output."""
        return self.input_elements + sum(row.elements for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        return self.activations * self.itemsize

    @property
    def weights(self) -> int:
        """Parameters of the rows without biases."""
        return sum(row.weights for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path."""
        return max((row.depth for row in self.rows), default=0)

    def layer(self, pattern: str) -> Report:
        """The report of the rows whose name matches a shell pattern, e.g. "features.*".

        Raises ValueError naming what there is when none does.
        """
        rows = tuple(r for r in self.rows if fnmatch.fnmatchcase(r.name, pattern))
        if not rows:
            names = ", ".join(r.name for r in self.rows)
            raise ValueError(f"layer is {pattern!r}, which matches none of: {names}")
        parameters = sum(row.parameters for row in rows)
        return replace(self, rows=rows, parameters=parameters, fixed=0)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; there are {', '.join(r.name for r in self.rows)}")


def _function_step(function, args: Sequence, kwargs: dict, out: Tensor) -> Step | None:
    """The step of a functional call outside the known modules, None for one that is just followed."""

    def arg(i: int, name: str, default=None):
        return args[i] if len(args) > i else kwargs.get(name, default)

    if function in (F.conv2d, torch.conv2d, F.linear):
        weight, bias = arg(1, "weight"), arg(2, "bias")
        conv = function is not F.linear
        positions = math.prod(out.shape) // out.shape[-3 if conv else -1]
        macs = positions * weight.numel()
        window = (
            {
                "kernel": tuple(weight.shape[-2:]),
                "stride": pair(arg(3, "stride", 1)),
                "dilation": pair(arg(5, "dilation", 1)),
            }
            if conv
            else {}
        )
        return Step(
            "conv2d" if conv else "linear", out.shape, macs, 2 * macs, weight.numel(),
            0 if bias is None else bias.numel(), weighted=True, **window,
        )  # fmt: skip
    if function in (F.max_pool2d, torch.max_pool2d, F.avg_pool2d):
        kernel = pair(arg(1, "kernel_size"))
        average = function is F.avg_pool2d
        flops = math.prod(out.shape) * math.prod(kernel) if average else 0
        return Step(
            "avg_pool2d" if average else "max_pool2d", out.shape, 0, flops, kernel=kernel,
            stride=pair(arg(2, "stride") or kernel),
        )  # fmt: skip
    if function is F.adaptive_avg_pool2d:
        return steps(nn.AdaptiveAvgPool2d(1), arg(0, "input").shape, out.shape)[0]
    if function in (torch.cat, torch.concat):
        return Step("cat", out.shape)
    other = arg(1, "other")
    sums = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)
    if function in sums and isinstance(other, Tensor) and other.shape == out.shape:
        return Step("add", out.shape, 0, math.prod(out.shape))
    return None


class _Tracer(TorchFunctionMode):
    """Follows fields from tensor to tensor and collects rows."""

    def __init__(self):
        super().__init__()
        self.fields: dict[int, tuple[Tensor, Field]] = {}  # the tensor is kept, so ids stay unique
        self.rows: list[Row] = []
        self.stack: list[str] = []
        self.inside: str | None = None  # the known module that is running

    def field_of(self, *tensors: Tensor) -> Field:
        return join(self.fields[id(t)][1] for t in tensors if id(t) in self.fields)

    def seen(self, value) -> list[Tensor]:
        return [t for t in tree_leaves(value) if isinstance(t, Tensor) and id(t) in self.fields]

    def record(self, out: Tensor, field: Field) -> None:
        self.fields[id(out)] = (out, field)

    def add_steps(self, name: str, found: list[Step], inputs: list[Tensor], out: Tensor) -> None:
        shape, field = inputs[0].shape, self.field_of(*inputs)
        read = sum(t.numel() for t in inputs) * out.element_size()
        for i, step in enumerate(found):
            field = step.field(field, shape)
            shape = step.shape
            elements = math.prod(shape)
            row = Row(
                name if i == 0 else f"{name}.{_SHORT[step.kind]}",
                step.kind, tuple(shape[1:]), elements, elements * out.element_size(), read,
                step.weight, step.bias, step.macs, step.flops, field.size, field.jump,
                field.depth, step.fused,
            )  # fmt: skip
            self.rows.append(row)
            read = elements * out.element_size()
        self.record(out, field)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [] if self.inside is not None else self.seen((args, kwargs))
        out = function(*args, **kwargs)
        if not inputs:
            return out
        if isinstance(out, Tensor):
            step = _function_step(function, args, kwargs, out)
            if step is not None:
                name = ".".join([*self.stack[-1:], step.kind]).lstrip(".")
                self.add_steps(name, [step], inputs, out)
                return out
        before = self.field_of(*inputs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                # A map that became a vector (flatten, mean): each element may see all of it.
                lost = inputs[0].dim() == 4 and tensor.dim() < 4
                self.record(tensor, before.over(tuple(inputs[0].shape[-2:])) if lost else before)
        return out

    def enter(self, name: str, module: nn.Module):
        def hook(_module, args):
            self.stack.append(name)
            known = steps.dispatch(type(module)) is not steps.dispatch(object)
            if known and self.inside is None:
                self.inside = name

        return hook

    def leave(self, name: str, module: nn.Module):
        def hook(_module, args, kwargs, out):
            self.stack.pop()
            if self.inside != name:
                return
            self.inside = None
            inputs = self.seen((args, kwargs))
            if not inputs:
                return
            result = out[0] if isinstance(out, tuple) else out
            found = steps(module, inputs[0].shape, result.shape)
            if found:
                self.add_steps(name, found, inputs, result)
            else:
                self.record(result, self.field_of(*inputs))

        return hook


_SHORT = {"MaxPool2d": "pool"}


def inspect_model(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    batch: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    training: bool = False,
) -> Report:
    """The per-layer table of a network.

    Args:
        model: any module, on any device (its weights are not read); it is left as it was.
        input_size: channels, height, width of one picture; by default ``model.input_size``.
        batch: pictures.
        dtype: of input, activations and weights.
        training: run it in training mode (GoogLeNet then runs its auxiliary classifiers).

    Raises ValueError naming a wrong ``input_size`` or ``batch``.
    """
    size = getattr(model, "input_size", None) if input_size is None else input_size
    if size is None:
        raise ValueError(
            "input_size is None; it must be given for a model that does not name its own"
        )
    size = tuple(size)
    if not size or any(not isinstance(s, int) or s < 1 for s in size):
        raise ValueError(
            f"input_size is {size!r}; it must be positive ints: channels, height, width"
        )
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is {batch!r}; it must be a positive int")

    def to_meta(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, dtype=kind, device="meta")

    state = {n: to_meta(t) for n, t in (*model.named_parameters(), *model.named_buffers())}
    tracer = _Tracer()
    handles = []
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(tracer.enter(name, module)))
            handles.append(
                module.register_forward_hook(tracer.leave(name, module), with_kwargs=True)
            )
        x = torch.empty(batch, *size, device="meta", dtype=dtype)
        tracer.record(x, Field())
        with torch.no_grad(), tracer:
            torch.func.functional_call(model, state, (x,))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    persistent = set(model.state_dict()) - {n for n, _ in model.named_parameters()}
    # Running statistics follow from training; codes and tables do not.
    running = ("running_mean", "running_var", "num_batches_tracked")
    fixed = sum(state[n].numel() for n in persistent if n.rpartition(".")[2] not in running)
    return Report(
        getattr(model, "name", type(model).__name__), getattr(model, "variant", ""), size, batch,
        dtype.itemsize, tuple(tracer.rows),
        sum(p.numel() for p in model.parameters() if p.requires_grad), fixed,
    )  # fmt: skip
