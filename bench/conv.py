"""Cases of ``cnnkernels bench conv``: convolution + bias (+ residual) + ReLU against its rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional as F

import cnnkernels

from .case import Candidate, Case, dtype_of, random_tensor
from .layers import LAYERS, ConvLayer
from .ops import backends_of, compiled, explained

BATCHES = {"cuda": (64, 256), "cpu": (1, 4)}


def _eager(layer: ConvLayer, residual: bool) -> Callable:
    if residual:

        def run(x, z, w, b):
            y = F.conv2d(x, w, b, layer.stride, layer.padding)
            return F.relu(y + z)

    else:

        def run(x, w, b):
            return F.relu(F.conv2d(x, w, b, layer.stride, layer.padding))

    return run


def _cudnn(layer: ConvLayer, residual: bool) -> Callable:
    """cuDNN's fused convolution, called directly."""
    geometry = ([layer.stride] * 2, [layer.padding] * 2, [1, 1], 1)
    if residual:
        return lambda x, z, w, b: torch.cudnn_convolution_add_relu(x, w, z, 1.0, b, *geometry)
    return lambda x, w, b: torch.cudnn_convolution_relu(x, w, b, *geometry)


def our_candidate(layer: ConvLayer, residual: bool, backend: str) -> Candidate:
    """Our op on one backend, or with "auto" the one that the dispatcher chooses."""

    def run(*inputs):
        with torch.no_grad(), cnnkernels.use(backend, strict=backend != "auto"):
            if residual:
                x, z, w, b = inputs
                return cnnkernels.conv2d_add_relu(x, w, z, b, layer.stride, layer.padding)
            x, w, b = inputs
            return cnnkernels.conv2d_relu(x, w, b, layer.stride, layer.padding)

    explain = explained(run) if backend == "auto" else None
    return Candidate.of(run, ours=True, backend=backend, explain=explain)


def _without_gradients(fn: Callable) -> Callable:
    def run(*inputs):
        with torch.no_grad():
            return fn(*inputs)

    return run


def make_case(
    layer: ConvLayer, batch: int, residual: bool, dtype: str, layout: str, device: torch.device,
    compile_mode: str | None = None,
) -> Case:  # fmt: skip
    """One layer at one batch size."""

    def make_inputs(generator):
        x = random_tensor(generator, layer.input_shape(batch), dtype, layout)
        w = random_tensor(generator, layer.weight_shape, dtype, layout)
        # Unit variance out of unit variance in, so that fp16 does not overflow.
        w.mul_((layer.channels * layer.kernel**2) ** -0.5)
        b = random_tensor(generator, (layer.filters,), dtype)
        if not residual:
            return x, w, b
        return x, random_tensor(generator, layer.output_shape(batch), dtype, layout), w, b

    op = "conv2d_add_relu" if residual else "conv2d_relu"
    eager = _eager(layer, residual)
    candidates = {"eager": Candidate.of(_without_gradients(eager))}
    if device.type == "cuda":
        candidates["cudnn fused"] = Candidate.of(_without_gradients(_cudnn(layer, residual)))
    if compile_mode:
        fn = compiled(eager, None if compile_mode == "default" else compile_mode)
        candidates[f"compile {compile_mode}"] = Candidate.of(_without_gradients(fn))
    for backend in ("auto", *backends_of(op, device)):
        if backend == "cudnn":
            continue  # the same as the rival above
        name = "cnnkernels" if backend == "auto" else f"cnnkernels {backend}"
        candidates[name] = our_candidate(layer, residual, backend)
    itemsize = dtype_of(dtype).itemsize
    return Case(
        suite="conv",
        name=f"{layer.label(batch)}{' +add' if residual else ''} {dtype} {layout}",
        op=op,
        dtype=dtype,
        layout=layout,
        shape=layer.input_shape(batch),
        device=device,
        make_inputs=make_inputs,
        candidates=candidates,
        oracle=eager,
        per_image=(True, True, False, False) if residual else (True, False, False),
        flops=layer.flops(batch),
        read_bytes=layer.read_bytes(batch, itemsize, residual),
        write_bytes=layer.write_bytes(batch, itemsize),
        fast_algorithms=dtype in ("fp32", "tf32") and layer.kernel > 1,
        extra={"net": layer.net, "layer": layer.label(batch), "batch": batch, "residual": residual},
    )


def cases(
    device: torch.device,
    *,
    batches: Iterable[int] = (),
    dtypes: Iterable[str] = ("bf16",),
    layout: str = "NHWC",
    only: str = "",
    residual: bool = True,
    compile_mode: str | None = None,
) -> list[Callable[[], Case]]:
    """The layers whose label contains ``only``, each also with its residual where it has one."""
    made = []
    for batch in batches or BATCHES[device.type]:
        for dtype in dtypes:
            for layer in LAYERS:
                if only and only not in layer.label(batch):
                    continue
                for add in (False, True) if layer.residual and residual else (False,):
                    made.append(
                        lambda a=(layer, batch, add, dtype, layout, device): make_case(
                            *a, compile_mode
                        )
                    )
    return made
