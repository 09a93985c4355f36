"""From a user's module to a functional graph over flat inputs, with torch.export."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .net import Net, Unsupported, aten, layer_of
from .passes import normalize


@dataclass
class Captured:
    """A captured model. ``dynamic_batch``: the graph holds for any size of each input's first
    dimension; ``in_spec``, ``out_spec``: how inputs and outputs are nested; ``inputs``: the
    flattened example inputs."""

    net: Net
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    dynamic_batch: bool
    inputs: list


def check_model(model: nn.Module) -> None:
    """Raise Unsupported where running the module does more than a graph of its tensors would."""
    training = [name for name, m in model.named_modules() if m.training]
    if training:
        raise Unsupported(f"module {training[0]!r} is in training mode")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"module {name!r} has forward hooks, which a graph would not run")
    tensors = [*model.parameters(), *model.buffers()]
    if any(type(t) not in (torch.Tensor, nn.Parameter) for t in tensors):
        raise Unsupported("a parameter is a tensor subclass")
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise Unsupported(
            f"the model's weights are on several devices: {sorted(map(str, devices))}"
        )
    if devices and next(iter(devices)).type not in ("cpu", "cuda"):
        raise Unsupported(f"the model is on {next(iter(devices))}; kernels exist for cpu and cuda")


def batch_of(flat: list) -> int | None:
    """The common first dimension of the tensors, None where there is none."""
    sizes = {t.shape[0] for t in flat if isinstance(t, torch.Tensor) and t.dim()}
    scalars = [t for t in flat if isinstance(t, torch.Tensor) and not t.dim()]
    return sizes.pop() if len(sizes) == 1 and not scalars else None


def with_batch(flat: list, batch: int) -> list:
    """The inputs, repeated or cut to a batch."""
    out = []
    for t in flat:
        if isinstance(t, torch.Tensor):
            t = t[torch.arange(batch, device=t.device) % t.shape[0]]
        out.append(t)
    return out


def _export(model, args, kwargs, dynamic: bool):
    shapes = None
    if dynamic:
        shapes = pytree.tree_map(
            lambda t: {0: torch.export.Dim.AUTO} if isinstance(t, torch.Tensor) else None,
            (args, kwargs),
        )
        args, kwargs = (pytree.tree_map(lambda t: t, a) for a in (args, kwargs))
        # dynamic_shapes follows the signature, so keyword inputs are passed by position there.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = _device_type(args, kwargs)
        with torch.autocast(device, enabled=False):
            return torch.export.export(
                model, args, kwargs, strict=False,
                dynamic_shapes=None if shapes is None else _by_name(model, *shapes),
            )  # fmt: skip


def _by_name(model, args, kwargs):
    if not kwargs:
        return tuple(args)
    import inspect

    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    return dict(bound.arguments)


def _device_type(*inputs) -> str:
    tensors = [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    return tensors[0].device.type if tensors else "cpu"


def capture(model: nn.Module, args: tuple, kwargs: dict, dtype: torch.dtype | None) -> Captured:
    """The graph of ``model(*args, **kwargs)`` in ``dtype`` (None: the model's own).

    Raises Unsupported, with the reason, where there is none.
    """
    check_model(model)
    originals = {**dict(model.named_parameters(remove_duplicate=False)),
                 **dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip
    originals = {name: t.detach() for name, t in originals.items()}
    if dtype is not None and any(
        t.is_floating_point() and t.dtype != dtype for t in originals.values()
    ):
        model = copy.deepcopy(model).to(dtype)
    flat, in_spec = pytree.tree_flatten((args, kwargs))
    given = [getattr(t, "dtype", None) for t in flat]
    if dtype is not None:
        flat = [
            t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
            for t in flat
        ]
    batch = batch_of(flat)
    program, dynamic = None, False
    if batch is not None:
        # A batch of 1 would be taken for a constant.
        traced = pytree.tree_unflatten(with_batch(flat, batch if batch > 1 else 2), in_spec)
        try:
            program, dynamic = _export(model, *traced, dynamic=True), True
        except Exception:  # not for any batch: then for this one
            program = None
    if program is None:
        try:
            program = _export(model, *pytree.tree_unflatten(flat, in_spec), dynamic=False)
        except Exception as error:
            first = str(error).strip().splitlines() or [""]
            raise Unsupported(f"torch.export: {type(error).__name__}: {first[0]}") from error
    signature = program.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:
        raise Unsupported(f"the model writes to {written[0]!r}")
    net = _flat_net(program, originals, flat)
    if dynamic:
        dynamic = _batch_is_free(net)
        if not dynamic and batch == 1:  # traced at 2 and fixed there
            program = _export(model, *pytree.tree_unflatten(flat, in_spec), dynamic=False)
            net = _flat_net(program, originals, flat)
    normalize.run(net)
    inputs = [n for n in net.graph.nodes if n.op == "placeholder"]
    for node, own in zip(inputs, given):
        node.meta["given"] = own
    return Captured(net, in_spec, program.call_spec.out_spec, dynamic, flat)


def _batch_is_free(net: Net) -> bool:
    values = [n.meta["val"] for n in net.graph.nodes if n.op == "placeholder"]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    return all(not isinstance(v.shape[0], int) for v in tensors)


def _flat_net(program, originals: dict, flat: list) -> Net:
    """The exported program as a Net: plain placeholders, weights by name."""
    module = program.module(check_guards=False)
    graph = module.graph
    graph.set_codegen(torch.fx.graph.CodeGen())
    tensors, masters = {}, {}
    for node in list(graph.nodes):
        node.meta["origin"] = node.name
        node.meta["layers"] = (layer_of(node),)
        if node.op == "get_attr":
            value = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if not isinstance(value, torch.Tensor):
                raise Unsupported(f"the graph holds a {type(value).__name__} ({node.target})")
            tensors[node.target] = value.detach()
            masters[node.target] = originals.get(node.target, value.detach())
            node.meta.setdefault("val", value.detach())
        elif node.op == "call_module" or node.op == "call_method":
            if node.users:
                raise Unsupported(f"the graph calls {node.target}")
            graph.erase_node(node)
        elif node.op == "call_function":
            _check_call(node)
        elif node.op == "output":
            node.args = (list(pytree.tree_leaves(node.args[0])),)
    device = next(
        (t.device for t in (*tensors.values(), *flat) if isinstance(t, torch.Tensor)),
        torch.device("cpu"),
    )
    return Net(graph, tensors, masters, device)


_STRIDED = (aten.as_strided.default,)


def _check_call(node) -> None:
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise Unsupported(f"the graph calls the higher-order operation {node.target}")
    if node.target in _STRIDED:
        raise Unsupported("the model reads memory by strides (as_strided)")
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags and not _is_eval_dropout(node):
        raise Unsupported(f"{layer_of(node)}: {node.target} draws random numbers")


def _is_eval_dropout(node) -> bool:
    return "dropout" in str(node.target) and len(node.args) > 2 and node.args[2] is False
