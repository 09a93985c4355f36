"""The stem kernels, for a network's first convolution (3 input channels, sm_90a): what they take."""

from __future__ import annotations

import functools

import torch

from .. import _lib
from . import _args


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def why_not(
    x, weight, residual, stride, padding, dilation, groups, pool=(), out_format=None
) -> str | None:
    """Why no stem kernel can run. pool: () or (padding, ceil_mode) of a 3x3/2 max-pool behind it;
    out_format: the output's memory format where it isn't the input's."""
    if x.shape[1] != 3 or groups != 1:
        return "the stem kernels take 3 input channels"
    leaf = "_conv2d_stem_pool_cuda" if pool else "_conv2d_stem_cuda"
    reason = _args.leaf_why_not(leaf, weight)
    if reason is not None:
        return reason
    if not hasattr(_lib.plan, "stem_why_not"):
        return _lib.plan_missing or "this build's planner knows no stems"
    if capability(x.device) != (9, 0):
        return "the stem kernels are compiled for sm_90a"
    if weight.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32:
        return "float32 runs in TF32, and torch.backends.cudnn.allow_tf32 is False"
    if (out_format or _args.memory_format(x)) != torch.channels_last:
        return "the stem kernels write channels_last"
    if residual is not None or list(dilation) != [1, 1] or stride[0] != stride[1]:
        return "the stem kernels take no residual or dilation, and one stride"
    return _lib.plan.stem_why_not(
        list(x.shape), list(weight.shape), stride[0], list(padding), _name(x.dtype),
        _name(weight.dtype), list(pool),
    ) or None  # fmt: skip


def unverified(x, weight, pool: bool = False) -> str | None:
    """Why this kind of stem kernel is not a default: no GPU has run and checked it yet. The list of
    those that one has is in csrc/plan/conv_stem.h."""
    if _lib.plan.stem_verified(_name(x.dtype), _name(weight.dtype), pool):
        return None
    return "this stem kernel was not verified on a GPU yet; force it with use()"
