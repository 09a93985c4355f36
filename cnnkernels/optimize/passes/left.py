"""After the rewrites: what each operation of this package stands for, and why the others stayed."""

from __future__ import annotations

from .. import concat
from ..net import Net, arguments, aten, operation
from . import conv as _conv

_TRIVIAL = {"getitem", "sym_size", "flatten", "reshape", "view", "permute", "transpose", "linear"}
_CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)


def run(net: Net) -> None:
    places = concat.Places(net)
    for node in net.graph.nodes:
        if node.op != "call_function":
            continue
        layers = " + ".join(node.meta.get("layers", ()))
        if node.meta.get("rewrites"):
            net.report.fused.append((" → ".join(node.meta["rewrites"]), layers))
        if getattr(node.target, "namespace", "") == "cnnkernels" or "part" in node.meta:
            continue
        if node in places.owners:
            net.report.fused.append((concat.KIND, layers))
            continue
        name = operation(node)
        if node.target in _CONVOLUTIONS:
            reason = _conv.why_not(net, node)
        elif node.target == aten.batch_norm.default:
            reason = "batch_norm: not after a convolution that only it reads"
            if arguments(node)[5]:
                reason = "batch_norm: normalises by the batch's own statistics"
        elif name in _TRIVIAL:
            continue
        else:
            reason = f"{name}: no operation of this package"
        net.report.left.append((layers, reason))
