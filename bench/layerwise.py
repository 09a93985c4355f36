"""A network layer by layer, in place: each layer is timed inside whole forward passes.

Its input is what the layer before left in the caches, as in use. A layer's output is compared with
that of an fp64 copy of the network before any speed is shown for it.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import nn as ours_nn
from ..testing import timing
from .case import precision
from .checks import LIMITS, MAX_BASELINE_ERROR, as_tuple
from .networks import Network, place
from .peaks import Peaks

MIN_PASSES = 3
CHECKED_IMAGES = {"cuda": 2, "cpu": 1}  # compared with fp64, layer by layer


@dataclass
class _Visit:
    """One call of one layer in a forward pass."""

    name: str
    kind: str
    seconds: list[float] = field(default_factory=list)
    shape: list[int] | None = None
    flops: int = 0
    matrix_flops: int = 0
    bytes: int = 0
    output: torch.Tensor | None = None


def _leaves(model: nn.Module) -> dict[str, nn.Module]:
    """Modules without children, by name; those that do nothing in inference are left out."""
    idle = (nn.Dropout, nn.Identity, nn.Flatten)
    return {
        name: module
        for name, module in model.named_modules()
        if name and not list(module.children()) and not isinstance(module, idle)
    }


class _Hooks:
    """Hooks before and after every leaf, for the length of a ``with`` block."""

    def __init__(self, model: nn.Module, before, after):
        self.model, self.before, self.after = model, before, after

    def __enter__(self):
        self.handles = []
        for name, module in _leaves(self.model).items():
            self.handles += [
                module.register_forward_pre_hook(lambda m, a, n=name: self.before(n, m, a)),
                module.register_forward_hook(lambda m, a, out, n=name: self.after(n, m, a, out)),
            ]

    def __exit__(self, *exc):
        for handle in self.handles:
            handle.remove()


def _size(tensors) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


def _describe(model: nn.Module, x: torch.Tensor) -> list[_Visit]:
    """Every call of a leaf in order, with its operations, bytes and output (of the first images)."""
    visits, counters = [], []

    def before(name, module, inputs):
        counters.append(FlopCounterMode(display=False))
        counters[-1].__enter__()

    def after(name, module, inputs, out):
        counter = counters.pop()
        counter.__exit__(None, None, None)
        outs = as_tuple(out)
        visit = _Visit(name, type(module).__name__, shape=list(outs[0].shape))
        visit.flops = counter.get_total_flops()
        visit.bytes = _size(inputs) + _size(outs) + _size(module.parameters())
        visit.matrix_flops = visit.flops if any(p.dim() > 1 for p in module.parameters()) else 0
        visit.output = outs[0][: CHECKED_IMAGES[x.device.type]].clone()
        visits.append(visit)

    with _Hooks(model, before, after), torch.no_grad():
        model(x)
    return visits


class _Pass:
    """Times every leaf of a model in one forward pass."""

    def __init__(self, model: nn.Module, x: torch.Tensor):
        self.model, self.x = model, x
        self.on_gpu = x.device.type == "cuda"
        self.seconds: list[list[float]] = []  # per leaf, per pass
        self._started: list = []
        self._spans: list[tuple] = []
        self._run()  # warm-up
        start = time.perf_counter()
        self._run()
        self.host_seconds = time.perf_counter() - start

    def _mark(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _run(self) -> None:
        self._spans.clear()
        with (
            _Hooks(
                self.model,
                lambda name, module, inputs: self._started.append(self._mark()),
                lambda name, module, inputs, out: self._spans.append(
                    (self._started.pop(), self._mark())
                ),
            ),
            torch.no_grad(),
        ):
            self.model(self.x)

    def time(self) -> None:
        timing.synchronize(self.x.device)
        timing.flush_caches(self.x.device)
        if self.on_gpu:  # the whole pass is enqueued before it starts: no gaps between kernels
            torch.cuda._sleep(int(1.5 * self.host_seconds * timing.SPIN_CYCLES_PER_SECOND))
        self._run()
        timing.synchronize(self.x.device)
        self.seconds = self.seconds or [[] for _ in self._spans]
        for values, (first, last) in zip(self.seconds, self._spans):
            values.append(first.elapsed_time(last) * 1e-3 if self.on_gpu else last - first)


def _time_layers(models: list[nn.Module], x, passes: int, seconds: float):
    """Per model and leaf, the seconds of each pass; the models take turns. As many passes as fit
    into so many seconds, three at least."""
    timers = [_Pass(model, x) for model in models]
    deadline = time.perf_counter() + seconds
    for index in range(passes):
        if index >= MIN_PASSES and time.perf_counter() > deadline:
            break
        for timer in timers:
            timer.time()
    return [timer.seconds for timer in timers]


def _error(out: torch.Tensor, reference: torch.Tensor) -> float:
    out, reference = out.double(), reference.double()
    norm = float(reference.norm())
    return float((out - reference).norm()) / norm if norm else float((out - reference).norm())


def measure(
    network: Network,
    batch: int,
    dtype: str,
    layout: str,
    device: torch.device,
    peaks: Peaks,
    passes: int = 5,
    seconds: float = math.inf,
) -> list[dict]:
    """One entry per layer: operations, bytes, time, rates, share of the floor, ratio to PyTorch.
    ``seconds`` limits the passes.

    An entry whose output differs from the fp64 network's has no time but a ``reason``.
    """
    order = torch.arange(batch) % len(network.pool)
    images = network.pool[order].to(device)
    ours = place(network.model, device, dtype, layout)
    twin = place(network.twin, device, dtype, layout)
    x = images.to(next(ours.parameters()).dtype)
    x = x.contiguous(
        memory_format=torch.channels_last if layout == "NHWC" else torch.contiguous_format
    )
    if not peaks.copy:
        peaks.measure_copy()
    if dtype not in peaks.matmul:
        peaks.measure_matmul(dtype)
    with precision(dtype):
        mine, theirs = _describe(ours, x), _describe(twin, x)
        exact = copy.deepcopy(network.twin).to(device).double()
        with torch.backends.cudnn.flags(enabled=False):
            truth = _describe(exact, x[: CHECKED_IMAGES[device.type]].double())
        times = _time_layers([ours, twin], x, passes, seconds)
    return [
        _entry(visits, truth[i].output, [t[i] for t in times], dtype, peaks)
        for i, visits in enumerate(zip(mine, theirs, strict=True))
    ]


def _entry(visits, truth, times, dtype: str, peaks: Peaks) -> dict:
    mine, _ = visits
    entry = {
        "name": mine.name,
        "type": mine.kind,
        "ours": mine.kind in ours_nn.__all__,
        "output": mine.shape,
        "flops": mine.flops,
        "bytes": mine.bytes,
    }
    error, eager_error = (_error(visit.output, truth) for visit in visits)
    entry["error"] = float(f"{error:.3g}")
    allowed = LIMITS[dtype][0]
    if eager_error <= MAX_BASELINE_ERROR[dtype]:
        allowed = max(allowed, 2 * eager_error)
    if not error <= allowed:
        return {**entry, "reason": f"relative error {error:.2g}, allowed {allowed:.2g}"}
    seconds, eager = (statistics.median(values) for values in times)
    floor = max(
        mine.matrix_flops / peaks.matmul[dtype] if mine.matrix_flops else 0.0,
        mine.bytes / peaks.copy,
    )
    return entry | {
        "us": round(seconds * 1e6, 2),
        "eager_us": round(eager * 1e6, 2),
        "gflops": round(mine.flops / seconds / 1e9, 2),
        "gbps": round(mine.bytes / seconds / 1e9, 2),
        "floor_us": round(floor * 1e6, 2),
        "share": round(floor / seconds, 4),
        "ratio": round(eager / seconds, 4) if eager_error <= MAX_BASELINE_ERROR[dtype] else None,
    }
