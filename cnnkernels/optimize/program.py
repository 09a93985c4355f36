"""Running a Net: every choice made once per input shape, then one straight-line Python function."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import fx

from ..ops import _args
from ..ops._op import OPS, use
from . import concat, onednn, slices
from .net import Net, ours

CONVOLUTIONS = (
    *onednn.CONVOLUTIONS, ours.conv2d_relu_max_pool2d.default, ours.conv2d_image.default
)  # fmt: skip


class Program:
    """A Net with its weights laid out for one memory format."""

    def __init__(self, net: Net, channels_last: bool):
        self.net, self.channels_last = net, channels_last
        self.tensors = dict(net.tensors)
        self.packable = onednn.weights(net)  # name → the names that share its tensor
        self.choices: list[tuple[str, str]] = []
        self.places = concat.Places(net)
        self.images = net.images()
        laid_out: dict = {}  # by tensor: a weight under two names is laid out once
        for conv in net.calls(*CONVOLUTIONS) if channels_last else ():
            if conv.args[1].op == "get_attr":
                name = conv.args[1].target
                weight = net.tensors[name]
                if id(weight) not in laid_out:
                    laid_out[id(weight)] = weight.contiguous(memory_format=torch.channels_last)
                self.tensors[name] = laid_out[id(weight)]

    def lay_out(self, flat: list) -> list:
        """The inputs in the program's memory format; an image that is read as it is stays dense."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return [
            t if not _is_image(t) else _args.dense(t) if raw else t.contiguous(memory_format=layout)
            for t, raw in zip(flat, self.images)
        ]

    @torch.no_grad()
    def trace(self, flat: list, see: Callable | None = None):
        """Run node by node on ``flat``; ``see(node, value)`` gets every value as it is computed.

        Returns (outputs, steps): steps[node] is the function that ran in the node's place, with
        the choice of implementation made; for a concatenation that owns a buffer, one that makes it.
        """
        flat = self.lay_out(flat)
        env: dict = {}
        steps: dict = {}
        last_use = _last_uses(self.net.graph)
        self.choices = []
        inputs = iter(flat)

        def value(node):  # a weight is looked up when it is read: packing puts another in its place
            return self.tensors[node.target] if node.op == "get_attr" else env[node]

        for node in self.net.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(inputs)
            elif node.op == "get_attr":
                continue
            elif node.op == "output":
                return [value(a) if isinstance(a, fx.Node) else a for a in node.args[0]], steps
            else:
                # Implementations take every argument: torch.export drops defaults.
                defaults = OPS[node.target._opname]._defaults if _is_ours(node) else ()
                steps[node] = self._resolve(node, _values(node, value, defaults)[0])
                args, kwargs = _values(node, value, defaults)
                env[node] = steps[node](*args, **kwargs)
                if node in self.places.owners:
                    steps[node] = self._buffer(env[node])
            if see is not None:
                see(node, env[node])
            for dead in last_use.get(node, ()):
                env.pop(dead, None)
        raise AssertionError("a graph ends with its output")

    def _resolve(self, node: fx.Node, args: tuple) -> Callable:
        """The function for one call, given its arguments."""
        layers = " + ".join(node.meta.get("layers", ()))
        if node.target == onednn.LINEAR:
            fn = onednn.linear(*args[:2]) if self._packable(node) else None
            if fn is None:
                return _unpacking(node.target) if _is_packed(args) else node.target
            self._pack(node, onednn.pack_linear, args[1])
            self.choices.append((layers, "linear: cpu"))
            return fn
        if not _is_ours(node):
            return node.target
        op = OPS[node.target._opname]
        with use(node.meta["prefer"]) if "prefer" in node.meta else contextlib.nullcontext():
            impl, decision = op.choose(args)
        if decision.chosen == "triton" and args[0].device.type == "cpu":
            impl = op.impls["reference"]  # Triton's interpreter is for tests of its kernels
        chosen, fn = impl.name, impl.fn
        if impl.tunable:
            fn = functools.partial(fn, config=decision.config)
        # The measured table compares convolutions as a single call makes them, weights laid out each
        # time; packed beforehand, oneDNN's is the faster one.
        measured = chosen == "reference" and decision.source.startswith("measured")
        packed = None
        if self._packable(node) and (chosen == "cpu" or (measured and _takes_cpu(op, args))):
            packed = onednn.convolution(node.target, args)
        if packed is not None:
            self._pack(node, onednn.pack_convolution, args[1], args)
            chosen, fn = "cpu", packed
        elif _is_packed(args):  # by another call that reads the same weight, or in another shape
            fn = _unpacking(fn)
        elif node in self.places.slices and self.places.aligned(node):
            fn = functools.partial(fn)  # an object of its own, to carry the other form
            fn.into = slices.into(node.target, chosen, decision.config, args)
        elif node in self.places.splits:
            fn = functools.partial(fn)
            fn.split = slices.split(node.target, chosen, args)
        self.choices.append((layers, f"{op.name}: {chosen}"))
        return fn

    def _packable(self, node: fx.Node) -> bool:
        """Whether the node is a convolution or matrix product whose weight may be packed."""
        if node.target not in (onednn.LINEAR, *onednn.CONVOLUTIONS):
            return False
        return node.args[1].op == "get_attr" and node.args[1].target in self.packable

    def _pack(self, node: fx.Node, pack: Callable, weight: torch.Tensor, *args) -> None:
        """Put the packed weight in the plain one's place, once."""
        if not weight.is_mkldnn:
            names = self.packable[node.args[1].target]
            self.tensors.update(dict.fromkeys(names, pack(weight, *args)))

    def _buffer(self, value: torch.Tensor) -> Callable:
        """Makes an uninitialised tensor like a concatenation's result."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        options = {"dtype": value.dtype, "device": value.device, "memory_format": layout}
        return functools.partial(torch.empty, value.shape, **options)

    def function(self, steps: dict) -> Callable:
        """The whole program as one Python function of the flat inputs, as :meth:`trace` chose."""
        names: dict = {}
        scope: dict = {}

        def bind(value, prefix: str) -> str:
            name = f"{prefix}{len(scope)}"
            scope[name] = value
            return name

        def text(value) -> str:
            if isinstance(value, fx.Node):
                return names[value]
            if isinstance(value, (list, tuple)):
                inner = "".join(f"{text(v)}, " for v in value)
                return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
            if isinstance(value, slice):
                return f"slice({text(value.start)}, {text(value.stop)}, {text(value.step)})"
            if value is None or isinstance(value, (bool, int, str)):
                return repr(value)
            return bind(value, "k")

        lines = []
        places, buffers, rests = self.places, {}, {}

        def buffer_of(cat: fx.Node) -> str:
            if cat not in buffers:
                buffers[cat] = f"b{len(buffers)}"
                lines.append(f"{buffers[cat]} = {bind(steps[cat], 'f')}()")
            return buffers[cat]

        last_use = _last_uses(self.net.graph)
        inputs = 0
        for i, node in enumerate(self.net.graph.nodes):
            if node.op == "placeholder":
                names[node] = f"x{inputs}"
                inputs += 1
            elif node.op == "get_attr":
                names[node] = bind(self.tensors[node.target], "w")
            elif node.op == "output":
                lines.append(f"return {text(list(node.args[0]))}")
            elif node in places.owners:
                names[node], rest = f"v{i}", places.rest(node)
                parts = [buffer_of(node), *(names[part] for part, *_ in rest)]
                lines.append(f"v{i} = {bind(concat.fill(rest), 'f')}({', '.join(parts)})")
                lines.append(f"del {parts[0]}")
            else:
                names[node] = f"v{i}"
                fn, parts = steps[node], [text(a) for a in node.args]
                # A default that the dispatcher would fill in: implementations take all arguments.
                if _is_ours(node):
                    defaults = OPS[node.target._opname]._defaults
                    parts += [text(a) for a in defaults[len(parts) :]]
                parts += [f"{k}={text(v)}" for k, v in node.kwargs.items()]
                place = places.slices.get(node)
                if getattr(fn, "split", None) is not None:
                    cat, start, size = rests[node] = places.slices[places.splits[node]]
                    fn = functools.partial(fn.split, start, size)
                    parts = [buffer_of(cat), *parts]
                elif node.args and node.args[0] in rests:  # a part: the first or of the others
                    cat, start, size = rests[node.args[0]]
                    if place == (cat, start, size):
                        fn, parts, place = concat.narrow(start, size), [buffer_of(cat)], None
                    else:
                        first, last = node.args[2:4]
                        fn, parts = concat.narrow(first - size, last - first), parts[:1]
                if place is not None:
                    fn = concat.into_slice(place, node, fn)
                    parts = [buffer_of(place[0]), *parts]
                lines.append(f"v{i} = {bind(fn, 'f')}({', '.join(parts)})")
            dead = [names[d] for d in last_use.get(node, ()) if d.op != "get_attr"]
            if dead and node.op != "output":
                lines.append(f"del {', '.join(dead)}")
        header = f"def program({', '.join(f'x{i}' for i in range(inputs))}):\n    "
        exec(header + "\n    ".join(lines), scope)
        return scope["program"]


def _is_ours(node: fx.Node) -> bool:
    return getattr(node.target, "namespace", "") == "cnnkernels" and node.target._opname in OPS


def _is_image(value) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 4


def _last_uses(graph: fx.Graph) -> dict:
    """node → values that nothing reads after it."""
    seen: set = set()
    result: dict = {}
    for node in reversed(graph.nodes):
        for value in node.all_input_nodes:
            if value not in seen:
                seen.add(value)
                result.setdefault(node, []).append(value)
    return result


def _takes_cpu(op, args: tuple) -> bool:
    return "cpu" in op.impls and op.impls["cpu"].why_not(*args) is None


def _is_packed(args: tuple) -> bool:
    return len(args) > 1 and isinstance(args[1], torch.Tensor) and args[1].is_mkldnn


def _unpacking(fn: Callable) -> Callable:
    def run(x, weight, *args, **kwargs):
        return fn(x, weight.to_dense(), *args, **kwargs)

    return run


def _values(node: fx.Node, value: Callable, defaults: tuple) -> tuple[tuple, dict]:
    """The node's arguments and keyword arguments as values."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    return (*args, *defaults[len(args) :]), kwargs
