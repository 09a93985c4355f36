"""cuDNN's own max-pool and LRN, called through ctypes: torch uses its own kernels for both.

The library is the one torch ships or loads. Tensors are fp32 or fp16 on the GPU, [N, C, H, W],
contiguous or channels_last, results in x's format. ``Unsupported`` where cuDNN refuses."""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import sys
from ctypes import byref, c_double, c_float, c_int, c_uint, c_void_p

import torch

NOT_SUPPORTED = {9, 3000}  # CUDNN_STATUS_NOT_SUPPORTED up to version 8, from 9 on
DTYPES = {torch.float32: 0, torch.float16: 2}
MAX_DETERMINISTIC, PROPAGATE_NAN, CROSS_CHANNEL = 3, 1, 0
ONE, ZERO = c_float(1.0), c_float(0.0)


class Unsupported(RuntimeError):
    pass


@functools.cache
def _library() -> ctypes.CDLL:
    torch.backends.cudnn.version()  # loads it
    name = f"libcudnn.so.{torch.backends.cudnn.version() // 10000 or 8}"
    folders = [os.path.join(p, "nvidia", "cudnn", "lib") for p in sys.path]
    found = [f for folder in folders for f in glob.glob(os.path.join(folder, name))]
    return ctypes.CDLL(found[0] if found else name)


def _call(name: str, *args) -> None:
    status = getattr(_library(), name)(*args)
    if status in NOT_SUPPORTED:
        raise Unsupported(f"{name} is not supported")
    if status != 0:
        raise RuntimeError(f"{name} returned {status}")


def _created(kind: str) -> c_void_p:
    descriptor = c_void_p()
    _call(f"cudnnCreate{kind}", byref(descriptor))
    return descriptor


@functools.cache
def _handle() -> c_void_p:
    handle = _created("")
    _call("cudnnSetStream", handle, c_void_p(torch.cuda.current_stream().cuda_stream))
    return handle


def _pair(x: torch.Tensor) -> tuple[c_void_p, c_void_p]:
    """Descriptor and data, as two arguments of cuDNN's functions."""
    descriptor = _created("TensorDescriptor")
    sizes_and_strides = [c_int(v) for v in (*x.shape, *x.stride())]
    _call("cudnnSetTensor4dDescriptorEx", descriptor, c_int(DTYPES[x.dtype]), *sizes_and_strides)
    return descriptor, c_void_p(x.data_ptr())


def max_pool2d(x: torch.Tensor, kernel: int, stride: int, padding: int, out_size, grad=None):
    """Values [N, C, *out_size], or, with grad of that shape, (values, gradient of x)."""
    window = _created("PoolingDescriptor")
    numbers = (MAX_DETERMINISTIC, PROPAGATE_NAN, kernel, kernel, padding, padding, stride, stride)
    _call("cudnnSetPooling2dDescriptor", window, *(c_int(v) for v in numbers))
    fmt = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    y = x.new_empty((*x.shape[:2], *out_size)).contiguous(memory_format=fmt)
    handle, one, zero = _handle(), byref(ONE), byref(ZERO)
    _call("cudnnPoolingForward", handle, window, one, *_pair(x), zero, *_pair(y))
    if grad is None:
        return y
    grad, dx = grad.contiguous(memory_format=fmt), torch.empty_like(x)
    _call("cudnnPoolingBackward", handle, window, one, *_pair(y), *_pair(grad), *_pair(x), zero,
          *_pair(dx))  # fmt: skip
    torch.cuda.synchronize()
    return y, dx


def local_response_norm(x: torch.Tensor, grad, size: int, alpha: float, beta: float, k: float):
    """(values, gradient of x); grad has x's shape and format."""
    norm, dx, y = _created("LRNDescriptor"), torch.empty_like(x), torch.empty_like(x)
    _call("cudnnSetLRNDescriptor", norm, c_uint(size), c_double(alpha), c_double(beta), c_double(k))
    handle, mode, one, zero = _handle(), c_int(CROSS_CHANNEL), byref(ONE), byref(ZERO)
    _call("cudnnLRNCrossChannelForward", handle, norm, mode, one, *_pair(x), zero, *_pair(y))
    _call("cudnnLRNCrossChannelBackward", handle, norm, mode, one, *_pair(y), *_pair(grad),
          *_pair(x), zero, *_pair(dx))  # fmt: skip
    torch.cuda.synchronize()
    return y, dx
