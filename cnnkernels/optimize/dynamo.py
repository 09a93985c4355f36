"""``torch.compile(model, backend="cnnkernels")``: the same passes and proof on Dynamo's graphs.

A graph that can't be optimised, or that needs gradients, goes to Inductor.
"""

from __future__ import annotations

import warnings

import torch
from torch import fx, nn

from .net import Unsupported
from .plan import Plan
from .proof import NotEqual, default_tolerance, prove


def backend(module: fx.GraphModule, example_inputs: list, **options):
    """Dynamo's entry: a callable of the graph's inputs. No options."""
    if options:
        raise ValueError(f"options are {sorted(options)}; the backend cnnkernels takes none")
    reason = why_not(module, example_inputs)
    if reason is None:
        try:
            # Dynamo's tracing context must not see the export: its guards would come from both.
            with torch._guards.tracing(None):
                return _Compiled(module, example_inputs)
        except Unsupported as error:
            reason = str(error)
        except NotEqual as error:
            reason = str(error)
            warnings.warn(f"cnnkernels: not optimised, left to Inductor: {reason}", stacklevel=2)
    return inductor(module, example_inputs)


def inductor(module: fx.GraphModule, example_inputs: list):
    """Inductor's code for the graph, eager where it has none."""
    from torch._inductor.compile_fx import compile_fx

    try:
        return compile_fx(module, example_inputs)
    except Exception as error:
        warnings.warn(f"cnnkernels: Inductor failed, eager runs: {error}", stacklevel=3)
        return module.forward


def why_not(module: fx.GraphModule, example_inputs: list) -> str | None:
    tensors = [t for t in example_inputs if isinstance(t, torch.Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "a gradient is needed"
    if not tensors:
        return "no tensor inputs"
    if any(torch.is_autocast_enabled(t.device.type) for t in tensors):
        return "autocast is on"
    if any(isinstance(t, torch._subclasses.FakeTensor) for t in tensors):
        return "the weights' values are not known"
    return None


class _Compiled:
    """A plan for the graph with its weights as constants, made anew when a weight changes.

    Weights are inputs of Dynamo's graph that it marks as static.
    """

    def __init__(self, module: fx.GraphModule, example_inputs: list):
        self.module = module
        nodes = [n for n in module.graph.nodes if n.op == "placeholder"]
        self.static = [i for i, n in enumerate(nodes) if _is_static(n, example_inputs[i])]
        self.moving = [
            i for i, t in enumerate(example_inputs)
            if isinstance(t, torch.Tensor) and i not in self.static
        ]  # fmt: skip
        others = [i for i in range(len(nodes)) if i not in (*self.static, *self.moving)]
        self.sizes = {i: _size_of(nodes[i], [nodes[j] for j in self.moving]) for i in others}
        self._build(example_inputs)

    def _build(self, inputs) -> None:
        frozen = self._freeze(inputs)
        flat = tuple(inputs[i].detach() for i in self.moving)
        self.plan = Plan(frozen, flat, {}, dtype=None, layout="contiguous", graph="auto")
        if not self.plan.net.report.fused:
            raise Unsupported("nothing in the graph is this package's")
        reason = self.plan.why_not(list(flat))
        if reason is not None:
            raise Unsupported(reason)
        self.plan.choose_layout("auto", list(flat))
        tolerance = default_tolerance(self.plan.dtype, self.plan.device)
        errors, _ = prove(self.plan, frozen, list(flat), self.plan.dynamic_batch, tolerance)
        self.plan.net.report.errors = errors
        self.plan.finish()
        self.plan.describe()
        self.version = self._versions(inputs)

    def _versions(self, inputs) -> tuple:
        return tuple(
            (inputs[i].data_ptr(), 0 if inputs[i].is_inference() else inputs[i]._version)
            for i in self.static
        )

    def _freeze(self, inputs) -> nn.Module:
        """The graph as a module of its moving tensors alone: weights are its attributes."""
        graph, env = fx.Graph(), {}
        root = nn.Module()
        for name, child in self.module.named_children():
            root.add_module(name, child)
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if "." not in name:
                setattr(root, name, tensor)
        nodes = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        for i in self.moving:
            env[nodes[i]] = graph.placeholder(f"x{i}")
        for i in self.static:
            tensor = inputs[i].detach()
            root.register_buffer(f"weight_{i}", tensor)
            env[nodes[i]] = graph.get_attr(f"weight_{i}")
        for i, (source, dim) in self.sizes.items():
            env[nodes[i]] = graph.call_method("size", (env[nodes[self.moving[source]]], dim))
        for node in self.module.graph.nodes:
            if node.op != "placeholder":
                env[node] = graph.node_copy(node, env.__getitem__)
        return fx.GraphModule(root, graph).eval()

    def __call__(self, *inputs):
        if self._versions(inputs) != self.version:
            try:
                self._build(inputs)
            except (Unsupported, NotEqual):
                return self.module(*inputs)
        flat = [inputs[i] for i in self.moving]
        if self.plan.why_not(flat) is not None or _needs_gradient(flat):
            return self.module(*inputs)
        with torch.no_grad():
            return tuple(self.plan.run_flat(flat))


def _needs_gradient(flat: list) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in flat)


def _is_static(node: fx.Node, value) -> bool:
    marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type")
    return isinstance(value, torch.Tensor) and (
        marked is not None or isinstance(value, nn.Parameter)
    )


def _size_of(node: fx.Node, tensors: list[fx.Node]) -> tuple[int, int]:
    """(which tensor, dimension) whose size the symbolic input is."""
    symbol = node.meta.get("example_value")
    for i, tensor in enumerate(tensors):
        for dim, size in enumerate(tensor.meta["example_value"].shape):
            if isinstance(symbol, torch.SymInt) and str(size) == str(symbol):
                return i, dim
    raise Unsupported(f"the graph's input {node.name} is not the size of a tensor")


def register() -> None:
    """Make the name known to torch.compile without an installed entry point."""
    from torch._dynamo.backends import registry

    if "cnnkernels" not in registry._COMPILER_FNS:
        registry.register_backend(backend, name="cnnkernels")
