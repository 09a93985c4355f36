"""``cnnkernels tune``: times every implementation of the ops that a network runs, verifies the winners
and records them in the user's table, from which later processes choose."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .. import tuning
from ..ops._op import OPS
from ..testing import compare, timing

# Relative Frobenius error against fp64 above which a winner is not recorded.
LIMITS = {"float64": 1e-12, "float32": 1e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 5e-3}
FINALISTS = 3
MARGIN = 1.02  # the rule's choice stays unless another is this much faster: less is noise
CHECKED_FLOPS = 2e9  # the oracle runs in fp64 on as many images as this pays for, at least one


class OutOfTime(Exception):
    """The deadline passed before an op was done; nothing of it is recorded."""


class DeviceLost(Exception):
    """A kernel left the GPU's context unusable: nothing more can be timed in this process."""


@dataclass
class Call:
    """One call of an op of ours: its arguments, all of them, with fake tensors for the real ones."""

    op: str
    args: tuple

    def key(self) -> str:
        return OPS[self.op].key(self.args)

    def named(self, args: tuple) -> Iterator[tuple[str, object]]:
        return zip(OPS[self.op].argument_names, args)

    def tensors(self, device: torch.device, seed: int = 0) -> tuple:
        """The arguments with tensors of about unit variance, weights scaled to keep it."""
        generator = torch.Generator(device).manual_seed(seed)
        made = []
        for name, a in self.named(self.args):
            if isinstance(a, torch.Tensor):
                values = torch.randn(a.shape, generator=generator, device=device)
                if "weight" in name:
                    values /= values[0].numel() ** 0.5
                a = torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=device)
                a.copy_(values)
            made.append(a)
        return tuple(made)


def capture(model: torch.nn.Module, x: torch.Tensor, dtype: torch.dtype) -> list[Call]:
    """The calls of our ops when ``model(x)`` runs in ``dtype``: as it is, and optimised.

    Nothing is computed: shapes go through the graph before and after the rewrites.
    """
    from ..optimize import passes
    from ..optimize.capture import capture as captured

    before = captured(model, (x,), {}, dtype).net
    after = before.copy()
    passes.apply(after, ["pair"])  # a pair's two parts are timed as well
    return [*_calls(before, x, dtype), *_calls(after, x, dtype)]


class _Record(TorchDispatchMode):
    """Keeps the calls of our ops that run inside."""

    def __enter__(self):
        self.calls: list[Call] = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cnnkernels" and func._opname in OPS:
            self.calls.append(
                Call(func._opname, (*args, *OPS[func._opname]._defaults[len(args) :]))
            )
        return func(*args, **(kwargs or {}))


def _calls(net, x: torch.Tensor, dtype: torch.dtype) -> Iterator[Call]:
    """The graph's calls, each after those that its reference makes: a chain's parts come first."""

    def fake(t: torch.Tensor) -> torch.Tensor:
        t = mode.from_tensor(t)
        return t.contiguous(memory_format=layout) if t.dim() == 4 else t

    def with_parts(call: Call) -> Iterator[Call]:
        with _Record() as inner:
            OPS[call.op].impls["reference"].fn(*call.args)
        for part in inner.calls:
            yield from with_parts(part)
        yield call

    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if nhwc else torch.contiguous_format
    env: dict = {}
    with FakeTensorMode() as mode, torch.no_grad(), _Record() as record:
        for node in net.graph.nodes:
            if node.op == "placeholder":
                env[node] = fake(x).to(torch.float32 if node.meta.get("image") else dtype)
            elif node.op == "get_attr":
                env[node] = fake(net.tensors[node.target])
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
                env[node] = node.target(*args, **kwargs)
    with mode, torch.no_grad():
        for call in record.calls:
            yield from with_parts(call)


def candidates(call: Call, args: tuple) -> Iterator[tuple[str, dict | None, Callable]]:
    """(implementation, config, function) of everything that can run this call here."""
    for impl in OPS[call.op].impls.values():
        if impl.name == "triton" and args[0].device.type != "cuda":
            continue  # off the GPU it is an interpreter
        if impl.why_not(*args) is not None:
            continue
        for config in (impl.configs(*args) if impl.configs else None) or [None]:
            options = {} if config is None else {"config": config}
            yield impl.name, config, functools.partial(impl.fn, *args, **options)


def error_of(call: Call, args: tuple, out) -> float:
    """Relative error against the reference in fp64, on the first and last images; inf for NaN."""
    outs = out if isinstance(out, (tuple, list)) else (out,)
    if not all(bool(torch.isfinite(t).all()) for t in outs):
        return float("inf")
    filters = [a[0].numel() for n, a in call.named(args) if "weight" in n and a is not None]
    per_image = 2 * max(t[:1].numel() for t in outs) * sum(filters, 16)
    some = max(min(int(CHECKED_FLOPS / per_image) // 2, outs[0].shape[0] // 2), 1)
    worst = 0.0
    for part in (slice(0, some), slice(-some, None)):
        wide = (_wide(name, a, part) for name, a in call.named(args))
        exact = OPS[call.op].impls["reference"].fn(*wide)
        for ours, right in zip(outs, exact if isinstance(exact, (tuple, list)) else (exact,)):
            worst = max(worst, compare.relative_error(ours[part], right))
    return worst


def _wide(name: str, a, part: slice):
    """An argument in fp64; of tensors with a batch only these images."""
    if not isinstance(a, torch.Tensor):
        return a
    return (a if "weight" in name or "bias" in name else a[part]).double()


def tune_call(call: Call, device: torch.device, seconds: float, deadline: float) -> dict:
    """The table's entry: the fastest implementation whose output is right.

    Raises RuntimeError when none is, OutOfTime when time.monotonic() passes ``deadline`` before all
    ran once, DeviceLost.
    """
    args = call.tensors(device)
    limit = LIMITS[call.key().split("/")[1]]
    runs, broken = {}, []
    for name, config, fn in candidates(call, args):
        if runs and time.monotonic() > deadline:  # what was compiled stays in Triton's cache
            raise OutOfTime
        try:
            fn()
            timing.synchronize(device)
            runs[name, len(runs)] = (config, fn)
        except Exception as error:  # a compiler's or driver's: the others still count
            broken.append(f"{name} {config}: {type(error).__name__}: {str(error)[:200]}")
            _check_device(device, broken[-1])
    fns = {key: fn for key, (_, fn) in runs.items()}
    seconds = seconds if len(fns) > 1 else 0.0  # nothing to choose
    rough = timing.interleaved(
        fns, device, min_rounds=3, max_rounds=5, max_seconds=seconds / 2, warmup_seconds=0.01
    )
    order = sorted(fns, key=lambda key: rough[key].median)
    # The best of every implementation meets in the final, so that the table shows them all.
    best_of_each = {name: next(k for k in order if k[0] == name) for name, _ in order}
    final = list(dict.fromkeys([*order[:FINALISTS], *best_of_each.values()]))
    exact = timing.interleaved(
        {key: fns[key] for key in final}, device, max_seconds=seconds / 2, warmup_seconds=0.01
    )
    us = {key: exact[key].median * 1e6 for key in final}
    rule = _rule(call, args, best_of_each)
    for key in sorted(us, key=lambda key: us[key] * (1 if key[0] == rule else MARGIN)):
        config, fn = runs[key]
        error = error_of(call, args, fn())
        if error <= limit:
            entry = {
                "impl": key[0], "us": round(us[key], 2), "error": float(f"{error:.2e}"),
                "rivals": {n: round(us[k], 2) for n, k in best_of_each.items() if n != key[0]},
            }  # fmt: skip
            return entry if config is None else entry | {"config": config}
        broken.append(f"{key[0]} {config}: error {error:.2e}, allowed {limit:.0e}")
    raise RuntimeError("no implementation gave a right result: " + "; ".join(broken))


def _rule(call: Call, args: tuple, names) -> str | None:
    """The implementation that runs without a table."""
    for impl in OPS[call.op].impls.values():
        if impl.name in names and impl.default and not (impl.held_back and impl.held_back(*args)):
            return impl.name
    return None


def _check_device(device: torch.device, what: str) -> None:
    try:
        timing.synchronize(device)
    except Exception as error:
        raise DeviceLost(f"{what}; since then the GPU answers {error}") from error


def _calls_of(names, batch, variant, dtype, memory_format, device) -> dict[str, Call]:
    """The networks' calls by key."""
    from .. import models

    found = {}
    for name in names:
        model = models.create(name, variant, device=device).eval()
        x = torch.empty(batch, *model.input_size, device=device, memory_format=memory_format)
        for call in capture(model, x, dtype):
            tensors = [a for a in call.args if isinstance(a, torch.Tensor)]
            if all(t.is_floating_point() for t in tensors):
                found[call.key()] = call
    return found


def tune(
    model: Annotated[list[str], typer.Argument(help="Names of networks, as `inspect --list`.")],
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; default bfloat16 on a GPU.")
    ] = "",
    layout: Annotated[str, typer.Option(help="nhwc (channels_last) or nchw.")] = "nhwc",
    device: Annotated[str, typer.Option(help="cuda or cpu; default the GPU if any.")] = "",
    variant: Annotated[str | None, typer.Option(help="paper or torchvision.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so long; go on later.")] = 10.0,
    again: Annotated[bool, typer.Option("--again", help="Measure known shapes again.")] = False,
) -> None:
    """Time every implementation of the networks' ops here, and remember the fastest.

    The ops are those that the networks run, as they are and optimised: convolutions, pools, LRN,
    additions. Writes the user's table after every op: stop or kill it at will, and start it again.
    What is in a table already is skipped. Later processes read the table; nothing is ever tuned in a
    forward pass.
    """
    from rich.console import Console
    from rich.progress import Progress

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"--dtype is {dtype!r}; allowed are float32, float16, bfloat16")
    if layout not in ("nhwc", "nchw"):
        raise ValueError(f"--layout is {layout!r}; allowed are nhwc, nchw")
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    calls = _calls_of(model, batch, variant, getattr(torch, dtype), memory_format, where)
    known = {} if again else tuning.entries(where)
    pending = {key: call for key, call in calls.items() if key not in known}
    console = Console()
    console.print(f"{len(pending)} of {len(calls)} op calls to time on {tuning.device_name(where)}")
    deadline = time.monotonic() + 60 * minutes
    path, failed, done = tuning.user_table(where), 0, 0
    with Progress(console=console) as progress:
        task = progress.add_task("tuning", total=len(pending))
        for key, call in pending.items():
            if time.monotonic() > deadline:
                break
            try:
                entry = tune_call(call, where, seconds=1.0, deadline=deadline)
            except OutOfTime:
                break
            except RuntimeError as error:
                failed += 1
                progress.console.print(f"{key}: {error}")
            else:
                path = tuning.save({key: entry}, where)
                tuning.forget()  # what follows may have this op as a part
                rivals = "".join(f", {name} {us:g}" for name, us in entry["rivals"].items())
                progress.console.print(f"{key}: {entry['impl']} {entry['us']:g} µs{rivals}")
            done += 1
            progress.advance(task)
    left = f"; {len(pending) - done} left: run it again" if done < len(pending) else ""
    console.print(f"{done - failed} recorded in {path}{left}")
    if failed:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    app.command()(tune)
