"""Which of an op's implementations runs: decided per kind of arguments, in this order: the backend
forced by :func:`use` or ``CNNKERNELS_BACKEND`` → the measured table (:mod:`cnnkernels.tuning`) → the
first implementation of the list that can take the arguments → the reference, which always can.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from .. import tuning

BACKENDS = ("auto", "cpu", "cuda", "cudnn", "triton", "reference")


@dataclass(frozen=True)
class Impl:
    """One implementation of an op.

    ``fn`` takes the op's arguments; ``why_not`` takes the same arguments and returns None when
    ``fn`` can run them, otherwise the reason. ``default=False`` keeps an implementation that no
    hardware has verified out of the automatic choice: it runs only when forced or named by the
    measured table; ``held_back`` does so for some arguments, with the reason. ``configs`` gives for
    the same arguments every config (a plain dict) that ``fn`` then takes as ``config=``; None
    stands for its own choice. ``detail`` says for the same arguments and ``config=`` what ``fn`` runs,
    for :func:`explain`.
    """

    name: str
    fn: Callable
    why_not: Callable[..., str | None]
    default: bool = True
    configs: Callable[..., list[dict]] | None = None
    held_back: Callable[..., str | None] | None = None
    detail: Callable[..., str] | None = None

    @property
    def tunable(self) -> bool:
        return self.configs is not None


@dataclass(frozen=True)
class Decision:
    """Which implementation of ``op`` was chosen, on whose word, and why the others were not."""

    op: str
    chosen: str
    source: str
    rejected: dict[str, str] = field(default_factory=dict)
    config: dict | None = None
    arguments: str = ""
    detail: str = ""  # how the implementation runs them

    def __str__(self) -> str:
        lines = [f"{self.op}({self.arguments}): {self.chosen} ({self.source})"]
        if self.config:
            lines.append(f"  config: {self.config}")
        if self.detail:
            lines.append(f"  {self.detail}")
        lines += [f"  not {name}: {reason}" for name, reason in self.rejected.items()]
        return "\n".join(lines)


_forced: contextvars.ContextVar[tuple[str, bool] | None] = contextvars.ContextVar(
    "cnnkernels_backend", default=None
)
record: contextvars.ContextVar[list[Decision] | None] = contextvars.ContextVar(
    "cnnkernels_record", default=None
)


def _check_backend(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where} is {name!r}; allowed are {', '.join(BACKENDS)}")
    return name


@contextlib.contextmanager
def use(backend: str, *, strict: bool = False) -> Iterator[None]:
    """Prefer one backend inside the ``with`` block: "auto", "cpu", "cuda", "cudnn", "triton", "reference".

    An op that has no such implementation, or whose implementation can't take the arguments, is
    chosen automatically and :func:`explain` says so; with ``strict=True`` it raises RuntimeError.
    ``CNNKERNELS_BACKEND`` does the same for a whole process. Affects the current thread only.
    """
    token = _forced.set((_check_backend(backend, "backend"), strict))
    try:
        yield
    finally:
        _forced.reset(token)


def _forced_backend() -> tuple[str, bool]:
    name = os.environ.get("CNNKERNELS_BACKEND", "auto") or "auto"
    return _forced.get() or (_check_backend(name, "CNNKERNELS_BACKEND"), False)


def settings() -> tuple:
    """Everything beside the arguments that a choice depends on."""
    # torch.backends' properties read the same, in ten times the time.
    return (
        _forced.get() or os.environ.get("CNNKERNELS_BACKEND"), tuning.generation(),
        torch._C._get_cudnn_enabled(), torch._C._get_cudnn_allow_tf32(),
        torch._C._get_mkldnn_enabled(),
    )  # fmt: skip


def _describe(args: Sequence) -> str:
    return ", ".join(
        f"{str(a.dtype).removeprefix('torch.')}{list(a.shape)}"
        if isinstance(a, torch.Tensor)
        else str(a)
        for a in args
    )


def choose(op, args: Sequence) -> tuple[Impl, Decision]:
    """``op``'s implementation for ``args`` (all positional, defaults filled in)."""
    rejected: dict[str, str] = {}

    def decided(name: str, source: str, config: dict | None = None) -> tuple[Impl, Decision]:
        impl, told = op.impls[name], ("", "")
        if record.get() is not None:
            told = _describe(args), impl.detail(*args, config=config) if impl.detail else ""
        return impl, Decision(op.name, name, source, rejected, config, *told)

    def usable(name: str) -> bool:
        if name not in op.impls:
            rejected[name] = f"{op.name} has no {name} implementation"
            return False
        reason = op.impls[name].why_not(*args)
        if reason is not None:
            rejected[name] = reason
        return reason is None

    forced, strict = _forced_backend()
    if forced != "auto":
        if usable(forced):
            return decided(forced, "forced")
        if strict:
            raise RuntimeError(
                f"{op.name}: backend {forced!r} was asked for, but {rejected[forced]}"
            )

    def held_back(name: str) -> bool:
        reason = (hold := op.impls[name].held_back) and hold(*args)
        if reason is not None:
            rejected[name] = reason
        return reason is not None

    entry = tuning.lookup(op.key(args), args[0].device)
    near = entry and entry.get("nearest")  # another shape's entry does not vouch for this one
    if entry is not None and usable(entry["impl"]) and not (near and held_back(entry["impl"])):
        source = f"measured table, nearest shape {near}" if near else "measured table"
        impl, config = op.impls[entry["impl"]], entry.get("config")
        # Of another shape or version, and not a config here: the implementation picks its own.
        if config is not None and not (impl.configs and config in impl.configs(*args)):
            rejected[f"{impl.name} {config}"] = "not a config for these arguments"
            config = None
        return decided(impl.name, source, config)
    for impl in op.impls.values():
        if impl.name in rejected:
            continue
        if not impl.default:
            rejected[impl.name] = "not verified on this hardware yet; force it with use()"
        elif impl.name == "triton" and args[0].device.type != "cuda":
            rejected["triton"] = "off the GPU it is Triton's interpreter: only when forced"
        elif not held_back(impl.name) and usable(impl.name):
            return decided(impl.name, "rule")
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise RuntimeError(f"{op.name}: no implementation takes these arguments: {reasons}")
