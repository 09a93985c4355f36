"""fp64 oracles of every op, written from the definition and slow on purpose.

They share no code with the implementations: windows are gathered explicitly and reduced in fp64.
Inputs of any floating dtype are converted to fp64 first; outputs are fp64.
"""

from __future__ import annotations

import math

import torch

NEG_INF = -math.inf


def conv2d(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """y[n,k,p,q] = b[k] + sum_{c,r,s} x[n, c, p*stride + r*dilation - padding, ...] w[k,c,r,s].

    x [N, C, H, W], weight [K, C/groups, R, S]; cross-correlation as in torch.nn.Conv2d.
    """
    x, weight = x.double(), weight.double()
    n, c, h, w = x.shape
    k, cg, r, s = weight.shape
    p = (h + 2 * padding[0] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (w + 2 * padding[1] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    padded = x.new_zeros(n, c, h + 2 * padding[0], w + 2 * padding[1])
    padded[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w] = x
    y = x.new_zeros(n, groups, k // groups, p, q)
    wg = weight.view(groups, k // groups, cg, r, s)
    for i in range(r):
        for j in range(s):
            rows = slice(i * dilation[0], i * dilation[0] + (p - 1) * stride[0] + 1, stride[0])
            cols = slice(j * dilation[1], j * dilation[1] + (q - 1) * stride[1] + 1, stride[1])
            tap = padded[:, :, rows, cols].reshape(n, groups, cg, p, q)
            y += torch.einsum("ngcpq,gkc->ngkpq", tap, wg[:, :, :, i, j])
    y = y.reshape(n, k, p, q)
    return y if bias is None else y + bias.double().view(1, -1, 1, 1)


def pool_output_size(size, kernel, stride, padding, dilation, ceil_mode):
    """torch.nn.MaxPool2d's output size; with ceil_mode the last window must start inside the input
    or its left padding."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


def max_pool2d(x, kernel, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    """(values fp64, int64 indices h*W + w) of the first maximum of each window; a NaN wins, and of
    several NaN the last (torch.nn.functional.max_pool2d's scan: v > max or v is NaN). A window
    none of whose dilated taps lies inside gives -inf and -1. kernel, ...: pairs."""
    x = x.double()
    n, c, h, w = x.shape
    p = pool_output_size(h, kernel[0], stride[0], padding[0], dilation[0], ceil_mode)
    q = pool_output_size(w, kernel[1], stride[1], padding[1], dilation[1], ceil_mode)
    values = x.new_full((n, c, p, q), NEG_INF)
    indices = torch.full((n, c, p, q), -1, dtype=torch.int64, device=x.device)
    for i in range(p):
        for j in range(q):
            best = x.new_full((n, c), NEG_INF)
            where = None
            for r in range(kernel[0]):
                for s in range(kernel[1]):
                    row = i * stride[0] - padding[0] + r * dilation[0]
                    col = j * stride[1] - padding[1] + s * dilation[1]
                    if not (0 <= row < h and 0 <= col < w):
                        continue
                    v = x[:, :, row, col]
                    if where is None:
                        where = torch.full_like(v, row * w + col, dtype=torch.int64)
                    take = (v > best) | v.isnan()
                    best = torch.where(take, v, best)
                    where = torch.where(take, row * w + col, where)
            values[:, :, i, j] = best
            if where is not None:
                indices[:, :, i, j] = where
    return values, indices


def max_pool2d_backward(grad, indices, input_shape):
    """d/dx in fp64: each output's gradient added to the pixel its index names (-1: none)."""
    n, c, h, w = input_shape
    dx = torch.zeros(n, c, h * w, dtype=torch.float64, device=grad.device)
    grad, indices = grad.double().flatten(2), indices.flatten(2)
    for i in range(indices.shape[2]):
        at = indices[:, :, i : i + 1]
        g = torch.where(at >= 0, grad[:, :, i : i + 1], 0)
        at = at.clamp(min=0)
        dx.scatter_(2, at, dx.gather(2, at) + g)
    return dx.view(n, c, h, w)


def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    """x / (k + alpha/size * sum of squares over `size` channels)^beta, size//2 of them in front.

    Krizhevsky et al. 2012 multiply alpha by the sum; torch, Caffe and cuDNN by the mean.
    """
    x = x.double()
    channels = x.shape[1]
    out = torch.empty_like(x)
    for c in range(channels):
        first, last = c - size // 2, c - size // 2 + size
        window = x[:, max(first, 0) : min(last, channels)]
        out[:, c] = x[:, c] / (k + alpha / size * window.square().sum(1)) ** beta
    return out


def relu(x):
    """max(x, 0); NaN stays NaN."""
    x = x.double()
    return torch.where(x <= 0, torch.zeros_like(x), x)


def local_response_norm_backward(grad, x, size, alpha=1e-4, beta=0.75, k=1.0):
    """d/dx in fp64, one channel of the output at a time: channel c's output depends on its own
    input directly and on every channel of its window through the denominator."""
    grad, x = grad.double(), x.double()
    channels = x.shape[1]
    dx = torch.zeros_like(x)
    for c in range(channels):
        first, last = max(c - size // 2, 0), min(c - size // 2 + size, channels)
        window = x[:, first:last]
        d = k + alpha / size * window.square().sum(1)
        dx[:, c] += grad[:, c] * d**-beta
        through = grad[:, c] * x[:, c] * -beta * d ** (-beta - 1)
        dx[:, first:last] += (through * 2 * alpha / size).unsqueeze(1) * window
    return dx


def global_avg_pool2d(x):
    """Mean over each plane: x [N, C, H, W] -> fp64 [N, C, 1, 1]."""
    x = x.double()
    return (x.flatten(2).sum(2) / (x.shape[2] * x.shape[3]))[:, :, None, None]
