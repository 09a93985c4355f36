"""A model captured, rewritten and laid out for one dtype; prepared once per input shape."""

from __future__ import annotations

import time
from collections import OrderedDict

import torch
from torch import nn

from . import passes
from .capture import Captured, capture
from .cuda_graph import GraphRunner
from .program import Program

SHAPES = 8  # prepared shapes kept, least recently used ones dropped


class Plan:
    """Runs the rewritten graph on flat inputs.

    captured: the graph before the rewrites, for the proof.
    """

    def __init__(self, model: nn.Module, args, kwargs, *, dtype, layout, graph, optional=()):
        found: Captured = capture(model, args, kwargs, dtype)
        self.in_spec, self.out_spec = found.in_spec, found.out_spec
        self.dynamic_batch = found.dynamic_batch
        self.captured = found.net
        self.net = found.net.copy()
        self.device = self.net.device
        self.dtype = dtype or _dtype_of(found.net)
        passes.apply(self.net, optional)
        self._placeholders = [
            n.meta.get("val") for n in self.net.graph.nodes if n.op == "placeholder"
        ]
        self._shapes = [getattr(t, "shape", None) for t in found.inputs]
        self._images = self.net.images()
        self._own_weights()
        self.graph, self._pool = graph, None
        self._prepared: OrderedDict = OrderedDict()
        self.set_layout(layout)

    def set_layout(self, layout: str) -> None:
        self.layout = layout
        self._prepared.clear()
        self.program = Program(self.net, channels_last=layout == "channels_last")

    def choose_layout(self, layout: str, flat: list) -> None:
        """Set ``layout``; "auto" is the faster one on these inputs (CPU), channels_last (GPU)."""
        if layout == "auto" and self.device.type != "cpu":
            layout = "channels_last"
        if layout != "auto":
            self.set_layout(layout)
            return
        programs = {}
        for name in ("contiguous", "channels_last"):
            self.set_layout(name)
            self.run_flat(flat)
            programs[name] = self.program, self._prepared.copy()
        times = {name: [] for name in programs}
        for _ in range(3):  # in turn: other work on the machine then meets both
            for name in programs:
                self.program, self._prepared = programs[name]
                times[name].append(self.seconds(flat))
        self.layout = min(times, key=lambda name: min(times[name]))
        self.program, self._prepared = programs[self.layout]

    def _own_weights(self) -> None:
        """Copies of the weights that still are the user's: a plan is a snapshot, and a later
        change of a weight must not reach half of it."""
        copies: dict = {}
        for name, tensor in self.net.tensors.items():
            if self.captured.tensors.get(name) is tensor:
                if id(tensor) not in copies:
                    copies[id(tensor)] = tensor.clone()
                self.net.tensors[name] = copies[id(tensor)]

    def finish(self) -> None:
        """Drop what only passes and proof needed."""
        self.captured = None
        self.net.masters = {}
        self.net.tensors = self.program.tensors
        for node in self.net.graph.nodes:
            if node.op == "get_attr":  # the plain weight; the program may hold it packed
                node.meta["val"] = node.meta["val"].to("meta")

    def describe(self) -> None:
        """Fill in the report's facts about the plan."""
        report = self.net.report
        report.layout, report.dtype = self.layout, str(self.dtype).removeprefix("torch.")
        report.dynamic_batch = self.dynamic_batch
        report.graph = "one per input shape" if self.graph and self.device.type == "cuda" else "no"
        report.choices = self.program.choices

    def cast(self, flat: list) -> list:
        return [
            t.to(torch.float32 if raw else self.dtype)
            if isinstance(t, torch.Tensor) and t.is_floating_point()
            else t
            for t, raw in zip(flat, self._images)
        ]

    def why_not(self, flat: list) -> str | None:
        """Why these inputs are not the plan's: the graph holds for the captured shapes only."""
        if len(flat) != len(self._placeholders):
            return f"{len(flat)} inputs, captured with {len(self._placeholders)}"
        for i, (value, fake) in enumerate(zip(flat, self._placeholders)):
            if not isinstance(fake, torch.Tensor):
                if not isinstance(value, type(fake)) or value != fake:
                    return f"input {i} is {value!r}, captured as {fake!r}"
                continue
            if not isinstance(value, torch.Tensor) or value.dim() != fake.dim():
                return f"input {i} is not a tensor of {fake.dim()} dimensions"
            if value.device != self.device:
                return f"input {i} is on {value.device}, the plan on {self.device}"
            skip = 1 if self.dynamic_batch else 0
            if value.shape[skip:] != self._shapes[i][skip:]:
                expected = list(self._shapes[i])
                return f"input {i} has shape {list(value.shape)}, captured as {expected}"
            if self.dynamic_batch and value.shape[0] == 0:
                return "the batch is empty"
        if (
            self.dynamic_batch
            and len({t.shape[0] for t in flat if isinstance(t, torch.Tensor)}) > 1
        ):
            return "the inputs differ in batch size"
        return None

    def run_flat(self, flat: list) -> list:
        """Flat inputs → flat outputs; the choices for a new shape are made here."""
        key = tuple(t.shape for t in flat if isinstance(t, torch.Tensor))
        run = self._prepared.get(key)
        if run is None:
            return self._prepare(key, flat)
        if len(self._prepared) > 1:
            self._prepared.move_to_end(key)
        return run(*self.program.lay_out(self.cast(flat)))

    # Not in inference mode: buffers made there could not be written outside of it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _prepare(self, key, flat: list) -> list:
        flat = self.cast(flat)
        steps = self.program.trace(flat)[1]
        run = self.program.function(steps)
        if self.graph and self.device.type == "cuda":
            run = self._captured_in_graph(run, self.program.lay_out(flat))
        self._prepared[key] = run
        while len(self._prepared) > SHAPES:
            self._prepared.popitem(last=False)
        return run(*self.program.lay_out(flat))

    def _captured_in_graph(self, run, flat: list):
        """``run`` as a CUDA graph; with graph="auto" itself, and a note, where that fails."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return GraphRunner(run, flat, self._pool)
        except RuntimeError as error:
            if self.graph != "auto":
                raise
            shapes = [list(t.shape) for t in flat if isinstance(t, torch.Tensor)]
            self.net.report.notes.append(f"no CUDA graph for {shapes}: {error}")
            return run

    def seconds(self, flat: list) -> float:
        """Wall time of one prepared call."""
        start = time.perf_counter()
        self.run_flat(flat)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start


def _dtype_of(net) -> torch.dtype:
    for tensor in net.tensors.values():
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32
