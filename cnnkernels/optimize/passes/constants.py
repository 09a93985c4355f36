"""Operations on weights alone, computed once: weight standardisation, parametrisations."""

from __future__ import annotations

import torch
from torch import fx

from ..net import Net


def run(net: Net) -> None:
    for node in list(net.graph.nodes):
        if node.op != "call_function" or not _only_weights(node):
            continue
        if not isinstance(node.meta.get("val"), torch.Tensor):
            continue

        def value(table, node=node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: table[n.target])
            with torch.no_grad(), torch.autocast(net.device.type, enabled=False):
                return node.target(*args, **kwargs)

        if not isinstance(result := value(net.tensors), torch.Tensor):
            continue
        master = value(net.masters) if _floating(net, node) else result
        constant = net.add_constant(master.detach().clone(), result.dtype, like=node)
        constant.meta = {**node.meta, "val": net.tensors[constant.target]}
        node.replace_all_uses_with(constant)
        net.graph.erase_node(node)
        net.report.fused.append(("computed once", " + ".join(node.meta["layers"])))


def _only_weights(node: fx.Node) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(n.op == "get_attr" for n in inputs)


def _floating(net: Net, node: fx.Node) -> bool:
    return all(net.tensors[n.target].is_floating_point() for n in node.all_input_nodes)
