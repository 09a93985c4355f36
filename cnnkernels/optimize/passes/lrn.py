"""Local response normalisation, which torch computes in eight steps: one operation, with the ReLU
before it and the max-pooling after it."""

from __future__ import annotations

from ..net import Net, arguments, aten, is_image, only_user, ours, pair, same, shape

RELUS = (aten.relu.default, ours.relu.default)
_VIEWS = (
    aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.flatten.using_ints,
)  # fmt: skip


def run(net: Net) -> None:
    for node in net.calls(aten.div.Tensor):
        found = match(node)
        if found is not None:
            x, chain, parameters = found
            net.replace([*chain, node], ours.local_response_norm.default, (x, *parameters), "LRN")
    for node in net.calls(ours.local_response_norm.default):
        _fuse_relu(net, node)
    for node in net.calls(ours.relu_lrn.default):
        _fuse_pool(net, node)


def match(node):
    """(x, nodes between, (size, alpha, beta, k)) of torch.nn.functional.local_response_norm's
    x / (k + alpha · mean of x² over a window of channels) ** beta; None for another division."""
    x, denominator = arguments(node)[:2]
    if not is_image(x) or not hasattr(denominator, "target"):
        return None
    chain, current = [], denominator
    numbers = {}
    steps = (
        (aten.pow.Tensor_Scalar, "beta"), (aten.add.Tensor, "k"), (aten.mul.Tensor, "alpha"),
    )  # fmt: skip
    for target, name in steps:
        if current.target != target:
            return None
        values = arguments(current)
        if not isinstance(values[1], (int, float)) or (len(values) > 2 and values[2] != 1):
            return None
        numbers[name] = float(values[1])
        chain.append(current)
        current = values[0]
    current = _through_views(current, chain)
    if current is None or current.target != aten.avg_pool3d.default:
        return None
    source, kernel, stride, padding, ceil_mode, _include, divisor = arguments(current)
    size, *rest = [*kernel, *([kernel[0]] * (3 - len(kernel)))]
    stride = list(stride) * 3 if len(stride) == 1 else list(stride)
    flat = rest == [1, 1] and stride == [1, 1, 1] and not any(padding)
    if not flat or ceil_mode or divisor is not None:
        return None
    chain.append(current)
    current = source
    if current.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return None
    values = arguments(current)
    constant = current.target != aten.pad.default or values[2] == "constant"
    if not constant or (values[-1] or 0) != 0:
        return None
    if list(values[1]) != [0, 0, 0, 0, size // 2, (size - 1) // 2]:
        return None
    chain.append(current)
    n, c, *_ = shape(x)
    padded = shape(values[0])
    if len(padded) != 5 or not same(padded[:3], (n, 1, c)):
        return None
    current = _through_views(values[0], chain)
    if current is None or not _is_square(current, x) or not same(shape(denominator), shape(x)):
        return None
    chain.append(current)
    return x, chain[::-1], (size, numbers["alpha"], numbers["beta"], numbers["k"])


def _through_views(node, chain: list):
    """The first node behind node that is not a view."""
    while node.op == "call_function" and node.target in _VIEWS:
        chain.append(node)
        node = node.args[0]
    return node if node.op == "call_function" else None


def _is_square(node, x) -> bool:
    if node.target == aten.mul.Tensor:
        return node.args[0] is x and node.args[1] is x
    if node.target == aten.pow.Tensor_Scalar:
        return node.args[0] is x and node.args[1] == 2
    return node.target == aten.square.default and node.args[0] is x


def _fuse_relu(net: Net, node) -> None:
    relu, *parameters = arguments(node)
    if relu.target in RELUS and only_user(relu) is node:
        net.replace([relu, node], ours.relu_lrn.default, (relu.args[0], *parameters), "ReLU + LRN")


def _fuse_pool(net: Net, node) -> None:
    pool = only_user(node)
    if pool is None or pool.target not in (aten.max_pool2d.default, ours.max_pool2d.default):
        return
    _, kernel, stride, padding, dilation, ceil_mode = arguments(pool)
    kernel = pair(kernel)
    window = (kernel, pair(stride, kernel), pair(padding), pair(dilation), ceil_mode)
    net.replace(
        [node, pool], ours.relu_lrn_max_pool2d.default, (*arguments(node), *window),
        "ReLU + LRN + max-pool",
    )  # fmt: skip
