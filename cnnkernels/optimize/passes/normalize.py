"""Before the rewrites: identities removed, in-place operations made functional, view → reshape."""

from __future__ import annotations

import torch

from ..net import Net, Unsupported, arguments, aten, layer_of

# In-place operations that write their first argument and have a functional twin.
_INPLACE = {
    "relu_", "hardtanh_", "silu_", "hardswish_", "hardsigmoid_", "sigmoid_", "leaky_relu_", "elu_",
    "gelu_", "relu6_", "mish_", "tanh_", "add_", "sub_", "mul_", "div_", "clamp_", "clamp_min_",
    "celu_", "selu_", "clamp_max_", "pow_", "exp_", "sqrt_",
}  # fmt: skip
# Results that may share the input's memory although the schema does not say so.
_MAY_ALIAS = {
    "reshape", "flatten", "contiguous", "dropout", "feature_dropout", "to", "expand_as", "view_as",
    "reshape_as", "type_as", "float", "chunk", "split", "unbind", "tensor_split", "getitem", "rsqrt",
}  # fmt: skip


def run(net: Net) -> None:
    _remove_identities(net)
    _functionalize(net)
    for node in net.calls(aten.view.default):
        # Which of the two a layout change leaves possible is not known here.
        node.target = aten.reshape.default
    net.clean()


def _is_identity(node) -> bool:
    name = node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""
    if name.rstrip("_") in ("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"):
        return arguments(node)[2] is False
    if name in ("aten::alias", "aten::detach", "aten::lift_fresh_copy", "aten::detach_"):
        return True
    if name == "aten::contiguous":  # the plan decides the layout
        return True
    if name == "aten::clone":
        return True
    if name.startswith("aten::to") or name == "aten::_to_copy":
        source, value = node.args[0].meta.get("val"), node.meta.get("val")
        return (
            isinstance(source, torch.Tensor)
            and source.dtype == value.dtype
            and source.device == value.device
        )
    return False


def _remove_identities(net: Net) -> None:
    """Dropout in eval, detach, copies that only matter to in-place operations or to a layout."""
    written = {
        n.args[0] for n in net.graph.nodes if _mutates(n) and n.args
    }  # a clone that is then written to keeps the original value alive
    for node in list(net.graph.nodes):
        if node.op != "call_function":
            continue
        name = getattr(getattr(node.target, "_schema", None), "name", "")
        if name in ("aten::_assert_tensor_metadata", "aten::_assert_async", "aten::_assert_scalar"):
            raise_if_used(node)
            net.graph.erase_node(node)
        elif _is_identity(node) and not (
            name == "aten::clone" and (node in written or node.args[0] in written)
        ):
            node.replace_all_uses_with(node.args[0])
            net.graph.erase_node(node)


def raise_if_used(node) -> None:
    if node.users:
        raise Unsupported(f"{layer_of(node)}: the value of {node.target} is used")


def _mutates(node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _aliases_input(node) -> bool:
    """Whether the node's value may share memory with its first argument."""
    if node.op != "call_function":
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True  # getitem
    name = schema.name.split("::")[-1]
    return name in _MAY_ALIAS or any(r.alias_info is not None for r in schema.returns)


def _functionalize(net: Net) -> None:
    """``y = relu_(x)`` → ``y = relu(x)``, later reads of x becoming reads of y.

    That is the same only where no other tensor shares x's memory: else Unsupported.
    """
    order = {node: i for i, node in enumerate(net.graph.nodes)}
    for node in list(net.graph.nodes):
        if not _mutates(node):
            continue
        namespace, name = node.target._schema.name.split("::")
        where = f"{layer_of(node)}: {node.target} writes to its argument"
        if namespace != "aten" or name not in _INPLACE:
            raise Unsupported(f"{where}, and has no functional form here")
        x = node.args[0]
        if x.op != "call_function":
            raise Unsupported(f"{where}, an input or weight of the model")
        base = x
        while _aliases_input(base):
            base = base.args[0]
            if base.op != "call_function" or len(base.users) > 1:
                raise Unsupported(f"{where}, which shares memory with another tensor")
        for user in x.users:
            if order[user] < order[node] and _aliases_input(user):
                raise Unsupported(f"{where}, of which a view was taken")
        packet = getattr(aten, name[:-1])
        twin = getattr(packet, node.target._overloadname, None)
        before, after = x.meta["val"], node.meta["val"]
        if twin is None or before.dtype != after.dtype:
            raise Unsupported(f"{where}, and has no functional form")
        later = [user for user in x.users if order[user] > order[node]]
        node.target = twin
        for user in later:
            user.replace_input_with(x, node)
