"""Memory of a training step: predicted by playing it on the meta device, and measured.

The prediction runs the step (forward, backward, optimizer) on tensors without data and adds up the
live ones after every op; what a kernel needs as workspace is not in it. The measurement runs the
real step and reads the allocator.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step with momentum SGD."""

    weights: int
    gradients: int
    optimizer: int
    input: int
    saved: int  # activations alive when backward starts, the output included
    peak: int  # the most alive at once, over the whole step


class _LiveBytes(TorchDispatchMode):
    """Bytes of the storages that live, and the most there were at once."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def track(self, value) -> None:
        for tensor in tree_leaves(value):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._dead, key)
        self.peak = max(self.peak, self.live)

    def _dead(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.track(out)
        return out


def _loss(out) -> Tensor:
    return sum(t.float().sum() for t in tree_leaves(out) if isinstance(t, Tensor))


def _step(model: nn.Module, optimizer, x: Tensor, between: Callable[[], None]) -> None:
    loss = _loss(model(x))
    between()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _input_size(model: nn.Module, input_size: Sequence[int] | None) -> tuple[int, ...]:
    size = getattr(model, "input_size", None) if input_size is None else input_size
    if size is None:
        raise ValueError("input_size is None; this model does not name its own")
    return tuple(size)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=False)


def predict_training_memory(
    model: nn.Module,
    batch: int,
    input_size: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> TrainingMemory:
    """Memory of a momentum-SGD step, in bytes, without running it.

    Args:
        model: any module; a copy goes to the meta device.
        batch: pictures per step.
        input_size: of one picture; by default ``model.input_size``.
        dtype: of weights and activations.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch!r}; it must be a positive int")
    size = _input_size(model, input_size)
    if any(not t.is_meta for t in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model)
    model = model.to("meta", dtype=dtype).train()
    x = torch.empty(batch, *size, dtype=dtype, device="meta")
    optimizer = _sgd(model)
    _step(model, optimizer, x, lambda: None)  # makes the momentum

    weights = sum(p.nbytes for p in model.parameters())
    momentum = sum(
        t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)
    )
    counter = _LiveBytes()
    counter.track([*model.parameters(), *model.buffers(), x, [*optimizer.state.values()]])
    before = counter.live
    saved = []
    with counter:
        _step(model, optimizer, x, lambda: saved.append(counter.live - before))
    return TrainingMemory(weights, weights, momentum, x.nbytes, saved[0], counter.peak)


def measure_training_memory(
    model: nn.Module, batch: int, input_size: Sequence[int] | None = None
) -> int:
    """Peak bytes that torch's allocator handed out in a real momentum-SGD step on the model's device.

    On CUDA it reads the caching allocator, on the CPU the profiler's record of every allocation.
    The model is trained by two steps on noise.
    """
    device = next(model.parameters()).device
    x = torch.randn(batch, *_input_size(model, input_size), device=device)
    model.train()
    optimizer = _sgd(model)
    if device.type == "cuda":
        _step(model, optimizer, x, lambda: None)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        _step(model, optimizer, x, lambda: None)
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        raise ValueError(f"model is on {device}; memory is measured on cpu and cuda")
    _step(model, optimizer, x, lambda: None)
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), x)) + sum(
        t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)
    )
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        _step(model, optimizer, x, lambda: None)
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return held + peak
