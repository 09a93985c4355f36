"""The graph that the passes rewrite: an fx graph of torch ops over flat inputs, and its weights."""

from __future__ import annotations

import operator

import torch
from torch import fx

from .report import Report

aten = torch.ops.aten
ours = torch.ops.cnnkernels


FOLDS = ("batch norm folded",)


class Unsupported(Exception):
    """The model can't be optimised; the message says why. It is then left alone."""


class Net:
    """A functional graph: no operation writes to a tensor that another one reads.

    graph: nodes are placeholders (the flattened inputs), get_attr (names in ``tensors``),
        call_function and one output, whose argument is the flat list of outputs.
    tensors: the weights in the dtype of the computation.
    masters: the same weights as the user's model has them; folding reads these, so that a folded
        weight is rounded once.
    Each node's ``meta["val"]`` is a fake tensor, ``meta["origin"]`` the name of the captured node
    whose value it has, and ``meta["layers"]`` the modules it stands for; an input's ``meta["given"]``
    is the example's own dtype.
    """

    def __init__(self, graph: fx.Graph, tensors: dict, masters: dict, device: torch.device):
        self.graph, self.tensors, self.masters, self.device = graph, tensors, masters, device
        self.optional: frozenset = frozenset()  # names of the optional passes that run
        self.report = Report()

    def copy(self) -> Net:
        """A graph of its own over the same weights."""
        new = fx.Graph()
        values: dict = {}
        new.output(new.graph_copy(self.graph, values))
        for old, copied in values.items():
            copied.meta = dict(old.meta)
        return Net(new, dict(self.tensors), dict(self.masters), self.device)

    def calls(self, *targets) -> list[fx.Node]:
        """The nodes that call one of ``targets``, in graph order."""
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in targets]

    def images(self) -> list[bool]:
        """For each input whether it is an image that its only reader takes in float32."""
        return [n.meta.get("image", False) for n in self.graph.nodes if n.op == "placeholder"]

    def constant(self, node) -> torch.Tensor | None:
        """The weight behind a get_attr node, in the user's precision; None for anything else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.masters[node.target]
        return None

    def add_constant(self, master: torch.Tensor, dtype: torch.dtype, like: fx.Node) -> fx.Node:
        """A new weight; ``like`` is a node after which nothing can need it."""
        name = f"w{len(self.tensors)}"
        while name in self.tensors:
            name += "_"
        self.masters[name], self.tensors[name] = master, master.to(dtype)
        with self.graph.inserting_before(like):
            node = self.graph.create_node("get_attr", name)
        node.meta = {"val": self.tensors[name], "layers": (), "origin": None}
        return node

    def replace(self, chain: list[fx.Node], target, args: tuple, kind: str):
        """Put one call of ``target`` in the place of ``chain``'s last node; the others die where
        nothing else reads them. ``kind`` names the rewrite for the report."""
        last = chain[-1]
        with self.graph.inserting_before(last):
            node = self.graph.call_function(target, args)
        layers = tuple(dict.fromkeys(name for n in chain for name in n.meta["layers"]))
        # A longer chain's name says what a shorter one's did; folding is told apart.
        folds = [r for n in chain for r in n.meta.get("rewrites", ()) if r in FOLDS]
        node.meta = {**last.meta, "layers": layers, "rewrites": (*folds, kind)}
        last.replace_all_uses_with(node)
        for dead in reversed(chain):
            if not dead.users:
                self.graph.erase_node(dead)
        return node

    def clean(self) -> None:
        """Remove what nothing reads."""
        self.graph.eliminate_dead_code()
        used = {n.target for n in self.graph.nodes if n.op == "get_attr"}
        self.tensors = {k: v for k, v in self.tensors.items() if k in used}
        self.masters = {k: v for k, v in self.masters.items() if k in used}


def arguments(node: fx.Node) -> tuple:
    """All arguments of a call of a torch op, positional, defaults filled in."""
    values = list(node.args)
    for argument in node.target._schema.arguments[len(values) :]:
        default = argument.default_value if argument.has_default_value() else None
        values.append(node.kwargs.get(argument.name, default))
    return tuple(values)


def pair(value, default=None) -> list[int]:
    """One or two ints as two; an empty list gives ``default``."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        return default
    return values * 2 if len(values) == 1 else values


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that reads this one, where exactly one does, once."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.op != "output" and user.all_input_nodes.count(node) == 1 else None


def shape(node) -> tuple:
    return tuple(node.meta["val"].shape)


def same(a, b) -> bool:
    """Sizes (ints or symbols) that are equal whatever the batch is."""
    return len(a) == len(b) and all(str(x) == str(y) for x, y in zip(a, b))


def is_image(node) -> bool:
    """A floating tensor [N, C, H, W]."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.is_floating_point()


def layer_of(node: fx.Node) -> str:
    """The path of the module that a captured node comes from, or the operation's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("",))[0] if stack else ""
    name = operation(node)
    return path if path and stack else name


def operation(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return (
        "getitem"
        if node.target is operator.getitem
        else getattr(node.target, "__name__", str(node.target))
    )
