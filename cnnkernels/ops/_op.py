"""Defining an op and deciding which of its implementations runs: the only dispatcher.

An op is declared once, with :func:`define`: schema, implementations, fake, autograd, autocast,
FLOPs. Which implementation runs is decided per call, in this order: the backend forced by
:func:`use` or ``CNNKERNELS_BACKEND`` → the measured table (:mod:`cnnkernels.tuning`) → the first
implementation of the list that can take the arguments → the reference, which always can.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.flop_counter import register_flop_formula

from .. import tuning

BACKENDS = ("auto", "cpu", "cuda", "cudnn", "triton", "reference")
LIB = torch.library.Library("cnnkernels", "FRAGMENT")
OPS: dict[str, Op] = {}
MEMO_LIMIT = 4096  # decisions kept per op


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
_record: contextvars.ContextVar[list[Decision] | None] = contextvars.ContextVar(
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
    forced = _forced.get()
    if forced is None:
        name = os.environ.get("CNNKERNELS_BACKEND", "auto") or "auto"
        forced = (_check_backend(name, "CNNKERNELS_BACKEND"), False)
    return forced


def explain(fn: Callable | str, *args, **kwargs) -> list[Decision]:
    """Run ``fn(*args, **kwargs)`` and return one :class:`Decision` per op of ours that it called.

    ``fn`` is any callable (a function of this package, a model) or an op's name. Printing a
    decision shows which implementation ran, why it was chosen and why the others were not.
    """
    if isinstance(fn, str):
        if fn not in OPS:
            raise ValueError(f"fn is {fn!r}; the ops are {', '.join(sorted(OPS))}")
        fn = OPS[fn].overload
    token = _record.set(decisions := [])
    try:
        with torch.no_grad():
            fn(*args, **kwargs)
    finally:
        _record.reset(token)
    return decisions


def _describe(args: Sequence) -> str:
    return ", ".join(
        f"{str(a.dtype).removeprefix('torch.')}{list(a.shape)}"
        if isinstance(a, torch.Tensor)
        else str(a)
        for a in args
    )


def _settings() -> tuple:
    """Everything beside the arguments that a decision depends on."""
    backends = torch.backends
    return (
        tuning.generation(), backends.cudnn.enabled, backends.cudnn.allow_tf32,
        backends.mkldnn.enabled,
    )  # fmt: skip


def _kind(a):
    """What a decision can depend on in one argument; a tensor's alignment included."""
    if isinstance(a, torch.Tensor):
        return a.dtype, a.device, a.shape, a.stride(), a.data_ptr() & 15
    return tuple(a) if isinstance(a, list) else a


class Op:
    """A torch op of this package and its implementations; made by :func:`define`."""

    def __init__(self, name: str, impls: Sequence[Impl], tuning_key: Callable | None):
        self.name = name
        self.impls = {impl.name: impl for impl in impls}
        self.tuning_key = tuning_key
        self.overload: torch._ops.OpOverload  # set by define()
        self._memo: dict[tuple, tuple[Impl, Decision]] = {}  # decisions already made; see run()

    def key(self, args: Sequence) -> str:
        """The measured table's key for ``args``."""
        if self.tuning_key is not None:
            return self.tuning_key(*args)
        return tuning.op_key(self.name, self.argument_names, args)

    def choose(self, args: Sequence) -> tuple[Impl, Decision]:
        """The implementation for ``args`` (all positional, defaults filled in)."""
        rejected: dict[str, str] = {}

        def usable(name: str) -> bool:
            if name not in self.impls:
                rejected[name] = f"{self.name} has no {name} implementation"
                return False
            reason = self.impls[name].why_not(*args)
            if reason is not None:
                rejected[name] = reason
            return reason is None

        forced, strict = _forced_backend()
        if forced != "auto":
            if usable(forced):
                return self._decide(forced, "forced", rejected, args)
            if strict:
                raise RuntimeError(
                    f"{self.name}: backend {forced!r} was asked for, but {rejected[forced]}"
                )

        def held_back(name: str) -> bool:
            reason = (hold := self.impls[name].held_back) and hold(*args)
            if reason is not None:
                rejected[name] = reason
            return reason is not None

        entry = tuning.lookup(self.key(args), args[0].device)
        near = entry and entry.get("nearest")  # another shape's entry does not vouch for this one
        if entry is not None and usable(entry["impl"]) and not (near and held_back(entry["impl"])):
            source = f"measured table, nearest shape {near}" if near else "measured table"
            impl, config = self.impls[entry["impl"]], entry.get("config")
            # Of another shape or version, and not a config here: the implementation picks its own.
            if config is not None and not (impl.configs and config in impl.configs(*args)):
                rejected[f"{impl.name} {config}"] = "not a config for these arguments"
                config = None
            return self._decide(impl.name, source, rejected, args, config)
        for impl in self.impls.values():
            if impl.name in rejected:
                continue
            if not impl.default:
                rejected[impl.name] = "not verified on this hardware yet; force it with use()"
            elif impl.name == "triton" and args[0].device.type != "cuda":
                rejected["triton"] = "off the GPU it is Triton's interpreter: only when forced"
            elif not held_back(impl.name) and usable(impl.name):
                return self._decide(impl.name, "rule", rejected, args)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
        raise RuntimeError(f"{self.name}: no implementation takes these arguments: {reasons}")

    def _decide(self, name, source, rejected, args, config=None) -> tuple[Impl, Decision]:
        impl, told = self.impls[name], ("", "")
        if _record.get() is not None:
            told = _describe(args), impl.detail(*args, config=config) if impl.detail else ""
        return impl, Decision(self.name, name, source, rejected, config, *told)

    def run(self, *args):
        """The kernel registered with torch: choose, then run.

        A decision is made once per kind of arguments: weighing the implementations of a convolution
        takes longer than enqueueing it. explain() always decides anew.
        """
        args = (*args, *self._defaults[len(args) :])
        record = _record.get()
        if record is not None:
            impl, decision = self.choose(args)
            record.append(decision)
        else:
            key = (_forced_backend(), _settings(), *map(_kind, args))
            if key not in self._memo:
                if len(self._memo) >= MEMO_LIMIT:
                    self._memo.clear()
                self._memo[key] = self.choose(args)
            impl, decision = self._memo[key]
        if impl.tunable:
            return impl.fn(*args, config=decision.config)
        return impl.fn(*args)


def define(
    schema: str,
    *,
    impls: Sequence[Impl],
    fake: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
    autocast: str | None = None,
    flops: Callable | None = None,
    tuning_key: Callable | None = None,
) -> Op:
    """Register ``cnnkernels::<schema>`` with torch and return its :class:`Op`.

    fake: the op on fake tensors (shapes, dtypes and strides of the outputs).
    setup_context, backward: as in :func:`torch.library.register_autograd`.
    autocast: "lower" casts floating inputs to the autocast dtype (matrix ops), "promote" to the
    widest among them, None leaves them (ops that compute in fp32 inside whatever they are given).
    flops: formula over shapes, as in :func:`torch.utils.flop_counter.register_flop_formula`.
    tuning_key: arguments → key in the measured table, where :func:`tuning.op_key` won't do.
    """
    name = schema.split("(", 1)[0]
    op = Op(name, impls, tuning_key)
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op.overload = getattr(torch.ops.cnnkernels, name).default
    op.argument_names = tuple(a.name for a in op.overload._schema.arguments)
    op._defaults = tuple(
        a.default_value if a.has_default_value() else None for a in op.overload._schema.arguments
    )
    LIB.impl(name, op.run, "CompositeExplicitAutograd")
    # torch leaves out trailing arguments that have their default value; put them back.
    torch.library.register_fake(
        f"cnnkernels::{name}", lambda *args: fake(*args, *op._defaults[len(args) :]), lib=LIB
    )
    if backward is not None:
        torch.library.register_autograd(
            f"cnnkernels::{name}", backward, setup_context=setup_context, lib=LIB
        )
    if autocast is not None:
        for device in ("CPU", "CUDA"):
            LIB.impl(name, _autocast_kernel(op, device, autocast), f"Autocast{device}")
    if flops is not None:
        register_flop_formula(getattr(torch.ops.cnnkernels, name))(flops)
    OPS[name] = op
    return op


def _autocast_kernel(op: Op, device: str, policy: str) -> Callable:
    key = getattr(torch._C.DispatchKey, f"Autocast{device}")

    def kernel(*args, **kwargs):
        floats = [
            a
            for a in (*args, *kwargs.values())
            if isinstance(a, torch.Tensor) and a.is_floating_point()
        ]
        if policy == "lower":
            dtype = torch.get_autocast_dtype(device.lower())
        else:
            dtype = floats[0].dtype
            for other in floats[1:]:
                dtype = torch.promote_types(dtype, other.dtype)

        def cast(a):
            # fp64 stays: autocast never lowers it.
            eligible = isinstance(a, torch.Tensor) and a.is_floating_point()
            return a.to(dtype) if eligible and a.dtype != torch.float64 else a

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op.overload(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})

    return kernel
