"""Defining an op, and calling it: the only dispatcher.

An op is declared once, with :func:`define`: schema, checks, implementations, fake, autograd,
autocast, FLOPs. A public function calls its :class:`Op`; from there a call goes

    Op.__call__ → torch.ops.cnnkernels.<name> → torch's dispatcher → Op.run → an implementation

or, where torch's dispatcher would do nothing, straight to Op.run. What depends on the arguments' kind
only is done at the first call of that kind: checking them, and choosing who runs (_choice.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import _C
from torch.utils.flop_counter import register_flop_formula

from .. import tuning
from . import _choice
from ._choice import Decision, Impl, use

__all__ = ["LIB", "OPS", "Decision", "Impl", "Op", "define", "explain", "use"]

LIB = torch.library.Library("cnnkernels", "FRAGMENT")
OPS: dict[str, Op] = {}
MEMO_LIMIT = 4096  # kinds of arguments remembered per op


def explain(fn: Callable | str, *args, **kwargs) -> list[Decision]:
    """Run ``fn(*args, **kwargs)`` and return one :class:`Decision` per op of ours that it called.

    ``fn`` is any callable (a function of this package, a model) or an op's name. Printing a
    decision shows which implementation ran, why it was chosen and why the others were not.
    """
    if isinstance(fn, str):
        if fn not in OPS:
            raise ValueError(f"fn is {fn!r}; the ops are {', '.join(sorted(OPS))}")
        fn = OPS[fn].overload
    token = _choice.record.set(decisions := [])
    try:
        with torch.no_grad():
            fn(*args, **kwargs)
    finally:
        _choice.record.reset(token)
    return decisions


def _bits(*keys: str) -> int:
    """A set of torch's dispatch keys as torch's own bits."""
    sets = (_C.DispatchKeySet(getattr(_C.DispatchKey, key)) for key in keys)
    return functools.reduce(int.__or__, (s.raw_repr() for s in sets))


_PLAIN = _bits("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView", "BackendSelect")
_AUTOCAST = _bits("AutocastCPU", "AutocastCUDA")


def _undispatched(tensors: Sequence) -> bool:
    """Whether torch's dispatcher would do nothing for a call with ``tensors`` but find the autograd
    formula and the kernel: no autocast, mode, transform, tracer or profiler is on, and no tensor is
    of a kind that one of the dispatcher's other kernels handles."""
    if (
        _C._dispatch_tls_local_include_set().raw_repr() & ~_PLAIN
        or _AUTOCAST & ~_C._dispatch_tls_local_exclude_set().raw_repr()
        or _C._len_torch_function_stack()
        or _C._autograd._profiler_enabled()
    ):
        return False
    for t in tensors:
        if t is not None and (
            type(t) not in (torch.Tensor, torch.nn.Parameter)
            or _C._dispatch_keys(t).raw_repr() & ~(_PLAIN | _AUTOCAST)
        ):
            return False
    return True


class Op:
    """A torch op of this package and its implementations; made by :func:`define`."""

    def __init__(self, overload: torch._ops.OpOverload, impls: Sequence[Impl], check, tuning_key):
        arguments = overload._schema.arguments
        self.name = overload._opname
        self.overload = overload
        self.impls = {impl.name: impl for impl in impls}
        self.tuning_key = tuning_key
        self.argument_names = tuple(a.name for a in arguments)
        self.tensors = sum("Tensor" in str(a.type) for a in arguments)  # they come first
        self.check = check or (lambda *args: args[self.tensors :])
        self.formula: type[torch.autograd.Function]  # set by define()
        self._defaults = tuple(
            a.default_value if a.has_default_value() else None for a in arguments
        )
        self._memo: dict[tuple, tuple[Callable, Sequence]] = {}  # see prepared()

    def key(self, args: Sequence) -> str:
        """The measured table's key for ``args``."""
        if self.tuning_key is not None:
            return self.tuning_key(*args)
        return tuning.op_key(self.name, self.argument_names, args)

    def choose(self, args: Sequence) -> tuple[Impl, Decision]:
        """The implementation for ``args`` (all positional, defaults filled in)."""
        return _choice.choose(self, args)

    def __call__(self, *args):
        """``torch.ops.cnnkernels.<name>(*args)`` for a public function, whose arguments (all of them)
        may still have any form that ``check`` takes.

        torch's dispatcher is left out where it would do nothing: it takes the arguments from Python
        to C++ and back three times, which lasts longer than a small kernel.
        """
        if torch.compiler.is_compiling() or not _undispatched(args[: self.tensors]):
            return self.overload(*args[: self.tensors], *self.check(*args))
        if torch.is_grad_enabled() and _C._any_requires_grad(*args):
            return self.formula.apply(*args)
        return self.run(*args)

    def run(self, *args):
        """The kernel registered with torch: check, choose, run."""
        fn, args = self.prepared((*args, *self._defaults[len(args) :]))
        return fn(*args)

    def prepared(self, args: tuple) -> tuple[Callable, tuple]:
        """(implementation, its arguments) for the op's. Errors are those of ``check``.

        Checking and choosing is done once per kind of arguments: for a convolution both take longer
        than enqueueing it. explain() always decides anew.
        """
        key = self._kind(args)
        try:
            known = self._memo.get(key)
        except TypeError:  # unhashable: symbolic, or nothing that check takes
            known, key = None, None
        if known is None or _choice.record.get() is not None:
            known = self._prepare(args)
            if len(self._memo) >= MEMO_LIMIT:
                self._memo.clear()
            if key is not None:
                self._memo[key] = known
        fn, rest = known
        return fn, (*args[: self.tensors], *rest)

    def _prepare(self, args: tuple) -> tuple[Callable, Sequence]:
        rest = self.check(*args)
        impl, decision = self.choose((*args[: self.tensors], *rest))
        if (record := _choice.record.get()) is not None:
            record.append(decision)
        fn = functools.partial(impl.fn, config=decision.config) if impl.tunable else impl.fn
        return fn, rest

    def _kind(self, args: tuple) -> tuple:
        """What check and choice can depend on; of a tensor its alignment too, but not its values."""
        kind = [_choice.settings()]
        for t in args[: self.tensors]:
            kind.append(
                t if t is None else (t.dtype, t.device, t.shape, t.stride(), t.data_ptr() & 15)
            )
        types = []  # True == 1 == 1.0, but check tells them apart
        for a in args[self.tensors :]:
            if isinstance(a, (list, tuple)):
                kind.append(tuple(a))
                types.extend(map(type, a))
            else:
                kind.append(a)
                types.append(type(a))
        return (*kind, *types)


def define(
    schema: str,
    *,
    impls: Sequence[Impl],
    fake: Callable,
    setup_context: Callable,
    backward: Callable,
    check: Callable | None = None,
    autocast: str | None = None,
    flops: Callable | None = None,
    tuning_key: Callable | None = None,
) -> Op:
    """Register ``cnnkernels::<schema>`` with torch and return its :class:`Op`. Tensors come first.

    check: raises TypeError or ValueError on arguments that the op doesn't take, and returns those
    after the tensors in the form that implementations, fake and autograd are given. What it says must
    follow from the tensors' dtypes, devices, shapes and strides. None: the arguments as they are.
    fake: the op on fake tensors (shapes, dtypes and strides of the outputs).
    setup_context, backward: as in :func:`torch.library.register_autograd`.
    autocast: "lower" casts floating inputs to the autocast dtype (matrix ops), "promote" to the
    widest among them, None leaves them (ops that compute in fp32 inside whatever they are given).
    flops: formula over shapes, as in :func:`torch.utils.flop_counter.register_flop_formula`.
    tuning_key: arguments → key in the measured table, where :func:`tuning.op_key` won't do.
    """
    name = schema.split("(", 1)[0]
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = Op(getattr(torch.ops.cnnkernels, name).default, impls, check, tuning_key)
    LIB.impl(name, op.run, "CompositeExplicitAutograd")

    # torch leaves out trailing arguments that have their default value; its backward counts without.
    def checked_fake(*args):
        args = (*args, *op._defaults[len(args) :])
        return fake(*args[: op.tensors], *op.check(*args))

    def counting_backward(ctx, *grads):
        missing = len(op._defaults) - len(ctx.needs_input_grad)
        ctx.needs_input_grad = (*ctx.needs_input_grad, *[False] * missing)
        return backward(ctx, *grads)

    def forward(ctx, *args):
        fn, args = op.prepared(args)
        out = fn(*args)
        setup_context(ctx, args, out)
        return out

    torch.library.register_fake(f"cnnkernels::{name}", checked_fake, lib=LIB)
    torch.library.register_autograd(
        f"cnnkernels::{name}", counting_backward, setup_context=setup_context, lib=LIB
    )
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    op.formula = type(f"cnnkernels_{name}", (torch.autograd.Function,), methods)
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
