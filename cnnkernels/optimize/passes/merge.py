"""Convolutions of one input with one geometry, as an inception module's three 1x1, become one.

On a CPU the merged convolution has no ReLU of its own: each part's ReLU, a pass over memory there
anyway, makes a dense tensor of its channel slice. On a GPU the parts are views of the result.
"""

from __future__ import annotations

import torch

from ..net import FOLDS, Net, arguments, aten, ours

NAME = "merge"
KIND = "convolutions of one input merged"


def run(net: Net) -> None:
    groups: dict = {}
    for conv in net.calls(ours.conv2d_relu.default, ours.conv2d.default):
        x, weight, bias, *geometry = arguments(conv)
        if geometry[-1] != 1 or net.constant(weight) is None:
            continue
        if bias is not None and net.constant(bias) is None:
            continue
        kernel = weight.meta["val"].shape[2:]
        groups.setdefault((x, conv.target, tuple(kernel), str(geometry)), []).append(conv)
    for (_, target, *_), convs in groups.items():
        relu = target == ours.conv2d_relu.default
        if len(convs) < 2 or (net.device.type == "cpu" and not relu):
            continue
        if NAME in net.optional:
            _merge(net, convs, relu)
        else:
            layers = " + ".join(name for c in convs for name in c.meta["layers"])
            net.report.left.append((layers, f"{KIND}: only with passes=[{NAME!r}]"))


def _merge(net: Net, convs: list, relu: bool) -> None:
    first = convs[0]
    x, _, _, *geometry = arguments(first)
    dtype = first.meta["val"].dtype
    weights = [net.constant(c.args[1]) for c in convs]
    with torch.no_grad():
        weight = net.add_constant(torch.cat(weights), dtype, like=first)
        biases = [net.constant(arguments(c)[2]) for c in convs]
        bias = None
        if any(b is not None for b in biases):
            filled = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases)]
            bias = net.add_constant(torch.cat(filled), dtype, like=first)
    folded = dict.fromkeys(r for c in convs for r in c.meta.get("rewrites", ()) if r in FOLDS)
    split = relu and net.device.type == "cpu"  # the ReLU after the slice
    with net.graph.inserting_before(first):
        target = ours.conv2d.default if split or not relu else ours.conv2d_relu.default
        merged = net.graph.call_function(target, (x, weight, bias, *geometry))
        value = first.meta["val"]
        n, _, h, w = value.shape
        merged.meta = {
            "val": value.new_empty((n, sum(map(len, weights)), h, w)),
            "origin": None,
            "layers": tuple(dict.fromkeys(name for c in convs for name in c.meta["layers"])),
            "rewrites": (*folded, KIND),
        }
        start = 0
        for conv, part in zip(convs, weights):
            node = net.graph.call_function(aten.slice.Tensor, (merged, 1, start, start + len(part)))
            node.meta = {**conv.meta, "rewrites": (), "part": True}
            if split:
                node.meta["origin"] = None
                node = net.graph.call_function(aten.relu.default, (node,))
                node.meta = {**conv.meta, "rewrites": (), "part": True}
            conv.replace_all_uses_with(node)
            start += len(part)
    for conv in convs:
        net.graph.erase_node(conv)
