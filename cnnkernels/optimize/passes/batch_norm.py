"""conv2d → batch norm with running statistics: one convolution with other weights.

w' = w γ / √(σ² + ε) and b' = (b − μ) γ / √(σ² + ε) + β, in fp64 from the user's own weights, rounded
once to the dtype of the computation.
"""

from __future__ import annotations

from ..net import Net, arguments, aten, is_image, only_user, ours

_CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, ours.conv2d.default)


def run(net: Net) -> None:
    folded: dict = {}  # a module used twice is folded once
    for conv in net.calls(*_CONVOLUTIONS):
        norm = only_user(conv)
        if norm is None or norm.target != aten.batch_norm.default or not is_image(conv):
            continue
        x, weight, bias, *geometry = arguments(conv)
        source, gamma, beta, mean, variance, training, _momentum, eps, _ = arguments(norm)
        named = (weight, bias, gamma, beta, mean, variance)
        if training or source is not conv or mean is None or variance is None:
            continue
        if any(n is not None and net.constant(n) is None for n in named):
            continue
        key = (*(n and n.target for n in named), eps)
        if key not in folded:
            folded[key] = fold(*map(net.constant, named), eps)
        dtype = conv.meta["val"].dtype
        nodes = [net.add_constant(t, dtype, like=norm) for t in folded[key]]
        _share(net, folded, key, nodes)
        net.replace([conv, norm], conv.target, (x, *nodes, *geometry), "batch norm folded")


def fold(weight, bias, gamma, beta, mean, variance, eps: float):
    """(w', b') in fp64; weight [K, C / groups, R, S], the others [K] or None."""
    scale = (variance.double() + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * scale
    if beta is not None:
        shift = shift + beta.double()
    return weight.double() * scale.view(-1, 1, 1, 1), shift


def _share(net: Net, folded: dict, key, nodes) -> None:
    """Let the second use of a folded module have the first use's tensors."""
    first = folded.setdefault((key, "tensors"), [net.tensors[n.target] for n in nodes])
    for node, tensor in zip(nodes, first):
        net.tensors[node.target] = tensor
