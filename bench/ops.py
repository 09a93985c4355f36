"""Cases of ``cnnkernels bench ops``: the memory-bound ops, forward, in training, and backward.

A row's bytes are those that have to move: every input read once, every output written once, and in
training the one byte per pooled output (position in its window) or one bit per sum (sign) that a
backward pass needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn import functional as F

import cnnkernels

from ..ops import OPS
from .case import LAYOUTS, Candidate, Case, count, dtype_of, random_tensor, shape_text
from .rivals import compiled
from .run import Job

LRN = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}  # AlexNet's constants
PHASES = ("infer", "train", "backward")
# name → [channels, height, width]; the outputs of AlexNet's and ResNet's first convolutions
MAPS = {"alex_c1": (96, 55, 55), "res_c1": (64, 112, 112)}
BATCH = {"cuda": 256, "cpu": 8}


@dataclass(frozen=True)
class Spec:
    """One op: ours and PyTorch's way to compute it, from inputs of the map's shape."""

    label: str
    op: str
    eager: Callable[..., torch.Tensor]
    kwargs: dict
    operands: str = "x"  # x: the map; r: a residual of its shape; b: a bias per channel
    exact: bool = False
    kept_bits: int = 0  # per output element, kept for the backward pass
    keeps_input: bool = False  # the backward pass reads the input again
    oracle: Callable[..., Callable] | None = None  # dtype → the result in fp64, where not eager's
    tie_free: int = 0  # windows of this size get no two values that rounding could swap

    def ours(self, *inputs):
        return getattr(cnnkernels, self.op)(*inputs, **self.kwargs)

    def torch(self, *inputs):
        return self.eager(*inputs, **self.kwargs)


def _lrn(x, size, alpha, beta, k):
    return F.local_response_norm(x, size, alpha, beta, k)


def _chain(x, size, alpha, beta, k, kernel_size, stride):
    return F.max_pool2d(_lrn(F.relu(x), size, alpha, beta, k), kernel_size, stride)


def chain_oracle(dtype: str) -> Callable[..., torch.Tensor]:
    """:func:`_chain` in fp64, pooling where the op pools: at the first maximum of the normalised
    values as they are once rounded to the dtype. Unrounded, other elements would get gradients."""

    def run(x, size, alpha, beta, k, kernel_size, stride):
        values = _lrn(F.relu(x), size, alpha, beta, k)
        rounded = values.detach().to(dtype_of(dtype)).to(values.dtype).contiguous()
        at = F.max_pool2d(rounded, kernel_size, stride, return_indices=True)[1]
        return values.flatten(2).gather(2, at.flatten(2)).view(at.shape)

    return run


def tie_free_tensor(generator, shape, dtype: str, layout: str, kernel: int) -> torch.Tensor:
    """Random signs and magnitudes, any two of a kernel × kernel window at least 3 % apart.

    Eager PyTorch rounds after every step of the chain, so that of two values next to each other
    it may pool another than an op that rounds once, and neither is wrong.
    """
    h, w = shape[2:]
    device = generator.device
    steps = torch.arange(kernel, device=device)
    place = (steps[:, None] * kernel + steps).repeat(-(-h // kernel), -(-w // kernel))[:h, :w]
    octaves = torch.randint(0, 12, shape, generator=generator, device=device)
    x = torch.exp2((octaves * kernel**2 + place) / 24 - 3.5)
    x = torch.where(torch.rand(shape, generator=generator, device=device) < 0.5, x, -x)
    return x.to(dtype_of(dtype)).contiguous(memory_format=LAYOUTS[layout])


def _pool(label: str, kernel: int, stride: int, padding: int = 0, relu: bool = False) -> Spec:
    kwargs = {"kernel_size": kernel, "stride": stride, "padding": padding}
    eager = (lambda x, **kw: F.max_pool2d(F.relu(x), **kw)) if relu else F.max_pool2d
    return Spec(
        label, "relu_max_pool2d" if relu else "max_pool2d", eager, kwargs, exact=True, kept_bits=8
    )


SPECS: list[Spec] = [
    _pool("maxpool2s2", 2, 2),
    _pool("maxpool3s2", 3, 2),
    _pool("maxpool3s1", 3, 1, 1),
    _pool("relu+maxpool3s2", 3, 2, relu=True),
    Spec("LRN5", "local_response_norm", _lrn, LRN, keeps_input=True),
    Spec("relu+LRN5", "relu_lrn", lambda x, **kw: _lrn(F.relu(x), **kw), LRN, keeps_input=True),
    Spec(
        "bias+relu+LRN5",
        "bias_relu_lrn",
        lambda x, b, **kw: _lrn(F.relu(x + b.view(1, -1, 1, 1)), **kw),
        LRN,
        operands="xb",
        keeps_input=True,
    ),
    Spec(
        "relu+LRN5+maxpool3s2",
        "relu_lrn_max_pool2d",
        _chain,
        {**LRN, "kernel_size": 3, "stride": 2},
        kept_bits=8,
        keeps_input=True,
        oracle=chain_oracle,
        tie_free=3,
    ),
    Spec("add+relu", "add_relu", lambda x, r: F.relu(x + r), {}, operands="xr", kept_bits=1),
    Spec("global_avg_pool", "global_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1), {}),
]


def _inputs(spec: Spec, shape, dtype: str, layout: str):
    def first(generator):
        if spec.tie_free:
            return tie_free_tensor(generator, shape, dtype, layout, spec.tie_free)
        return random_tensor(generator, shape, dtype, layout)

    def make(generator):
        tensors = {
            "x": lambda: first(generator),
            "r": lambda: random_tensor(generator, shape, dtype, layout),
            "b": lambda: random_tensor(generator, shape[1:2], dtype),
        }
        return tuple(tensors[kind]() for kind in spec.operands)

    return make


def _use(backend: str | None):
    """The backend for a ``with`` block; one named must run, or the row says why it can't."""
    return cnnkernels.use(backend or "auto", strict=backend not in (None, "auto"))


def _forward(fn: Callable, backend: str | None = None) -> Candidate:
    """``fn`` without gradients, on one backend where named."""

    def run(*inputs):
        with torch.no_grad():
            if backend is None:
                return fn(*inputs)
            with _use(backend):
                return fn(*inputs)

    if backend is None:
        return Candidate.of(run)
    return Candidate.of(
        run, ours=True, backend=backend, explain=explained(run) if backend == "auto" else None
    )


def explained(fn: Callable) -> Callable[..., str]:
    """inputs → names of the implementations that our ops inside ``fn`` run on."""

    def explain(*inputs) -> str:
        return "+".join(dict.fromkeys(d.chosen for d in cnnkernels.explain(fn, *inputs)))

    return explain


def _training(fn: Callable, backend: str | None = None) -> Candidate:
    """The forward pass that keeps what its backward pass needs."""

    def bind(*inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]

        def run():
            if backend is None:
                return fn(*leaves)
            with _use(backend):
                return fn(*leaves)

        return run

    return Candidate(bind, ours=backend is not None, backend=backend or "")


def _gradients(fn: Callable) -> Callable:
    """(output gradient, *inputs) → gradients of the inputs, as one function for the oracle."""

    def run(grad, *inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(fn(*leaves), leaves, grad)

    return run


def _backward(fn: Callable, backend: str | None = None) -> Candidate:
    """Only the backward pass: the forward one runs outside the timed region."""

    def bind(grad, *inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        with _use(backend):
            out = fn(*leaves)

        def run():
            with _use(backend):
                return torch.autograd.grad(out, leaves, grad)

        return run

    return Candidate(bind, ours=backend is not None, backend=backend or "")


MAKERS = {"infer": _forward, "train": _training, "backward": _backward}


def backends_of(op: str, device: torch.device) -> list[str]:
    """Backends worth forcing on a device, beside the automatic choice."""
    names = OPS[op].impls if op in OPS else {}
    wanted = ("cuda", "triton", "cudnn") if device.type == "cuda" else ("cpu",)
    return [name for name in wanted if name in names]


def make_case(
    spec: Spec, phase: str, shape, dtype: str, layout: str, device: torch.device,
    compile_modes: Iterable[str] = (), name: str = "",
) -> Case:  # fmt: skip
    """The case of one op in one phase; shape is the input's [N, C, H, W]."""
    itemsize = dtype_of(dtype).itemsize
    inputs = _inputs(spec, shape, dtype, layout)
    out_shape = spec.torch(
        *[torch.empty(shape if k != "b" else shape[1:2], device="meta") for k in spec.operands]
    ).shape
    read = sum(count(shape) if kind != "b" else shape[1] for kind in spec.operands) * itemsize
    written = count(out_shape) * itemsize
    kept = count(out_shape) * spec.kept_bits // 8
    per_image = tuple(kind != "b" for kind in spec.operands)
    exact = partial(spec.oracle(dtype), **spec.kwargs) if spec.oracle else spec.torch
    oracle, make_inputs = exact, inputs
    if phase == "train":
        written += kept
    elif phase == "backward":
        gradients = read
        read = count(out_shape) * itemsize + kept
        if spec.keeps_input:
            read += count(shape) * itemsize
        if spec.operands == "xr":
            gradients //= 2  # one tensor is the gradient of both
        written = gradients
        per_image = (True, *per_image)
        oracle = _gradients(exact)

        def make_inputs(generator):
            return random_tensor(generator, out_shape, dtype, layout), *inputs(generator)

    maker = MAKERS[phase]
    candidates = {"eager": maker(spec.torch)}
    for mode in compile_modes:
        candidates[f"compile {mode}"] = replace(maker(compiled(spec.torch, mode)), slow=True)
    candidates["cnnkernels"] = maker(spec.ours, "auto")
    backends = backends_of(spec.op, device)
    if phase != "infer":  # Triton and cuDNN have no training form of their own
        backends = [b for b in backends if b == "cuda"]
    for backend in backends:
        candidates[f"cnnkernels {backend}"] = maker(spec.ours, backend)
    return Case(
        suite="ops",
        name=name or f"{spec.label} {phase} {shape_text(shape)} {dtype} {layout}",
        op=spec.op,
        dtype=dtype,
        layout=layout,
        shape=tuple(shape),
        device=device,
        make_inputs=make_inputs,
        candidates=candidates,
        oracle=oracle,
        per_image=per_image,
        read_bytes=read,
        write_bytes=written,
        exact=spec.exact and phase != "backward",
        extra={"phase": phase},
    )


def cases(
    device: torch.device,
    *,
    dtypes: Iterable[str],
    layouts: Iterable[str] = ("NHWC", "NCHW"),
    phases: Iterable[str] = PHASES,
    maps: Iterable[str] = tuple(MAPS),
    only: str = "",
    batch: int | None = None,
    compile_modes: Iterable[str] = (),
) -> list[Job]:
    """Every case asked for; ops that this build lacks are left out."""
    batch = BATCH[device.type] if batch is None else batch
    made = []
    for map_name in maps:
        for dtype in dtypes:
            for layout in layouts:
                for spec in SPECS:
                    for phase in phases:
                        if spec.op not in OPS or only not in f"{spec.label} {phase}":
                            continue
                        if spec.operands == "xb" and phase == "backward":
                            continue  # its bias gradient is no per-image result
                        arguments = (spec, phase, (batch, *MAPS[map_name]), dtype, layout, device)
                        name = f"{spec.label} {phase} {map_name} {dtype} {layout}"
                        made.append(Job(name, partial(make_case, *arguments, compile_modes, name)))
    return made
