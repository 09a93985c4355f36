"""Cases of ``cnnkernels bench conv``: convolution + bias (+ residual) + ReLU against its rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels

from ..ops import OPS
from ..testing import timing
from . import engines
from .case import Candidate, Case, dtype_of, precision, random_tensor
from .layers import LAYERS, ConvLayer
from .ops import backends_of, explained
from .ratios import BEST_OWN
from .rivals import compiled
from .run import Job

BATCHES = {"cuda": (64, 256), "cpu": (1, 4)}


@dataclass(frozen=True)
class Rivals:
    """What a layer is measured against, beside eager PyTorch and cuDNN's fused convolution."""

    compile_modes: tuple[str, ...] = ()
    own: bool = False  # also the fastest of our own kernels, found by timing all
    engines: bool = True  # cuDNN's graph API and TensorRT, where installed


class _Layer(nn.Module):
    """The layer in torch's own ops, its weights as constants: what compilers may prepare."""

    def __init__(self, w: torch.Tensor, b: torch.Tensor, layer: ConvLayer):
        super().__init__()
        self.w, self.b = (nn.Parameter(t, requires_grad=False) for t in (w, b))
        self.layer = layer

    def forward(self, x, z=None):
        y = F.conv2d(x, self.w, self.b, self.layer.stride, self.layer.padding)
        return F.relu(y if z is None else y + z)


def _eager(layer: ConvLayer, residual: bool) -> Callable:
    if residual:

        def run(x, z, w, b):
            y = F.conv2d(x, w, b, layer.stride, layer.padding)
            return F.relu(y + z)

    else:

        def run(x, w, b):
            return F.relu(F.conv2d(x, w, b, layer.stride, layer.padding))

    return run


def _geometry(layer: ConvLayer) -> tuple:
    return [layer.stride] * 2, [layer.padding] * 2, [1, 1], 1


def _cudnn(layer: ConvLayer, residual: bool) -> Callable:
    """cuDNN's fused convolution, called directly."""
    geometry = _geometry(layer)
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


def one_config(op: str, backend: str, config: dict, layer: ConvLayer) -> Candidate:
    """An implementation called directly with a config, past the dispatcher."""
    impl = OPS[op].impls[backend]

    def run(*inputs):
        x, *rest, w, b = inputs
        arguments = (x, w, *rest, b, *_geometry(layer))
        if (reason := impl.why_not(*arguments)) is not None:
            raise RuntimeError(f"{op}: backend {backend!r} was asked for, but {reason}")
        with torch.no_grad():
            return impl.fn(*arguments, config=config)

    return Candidate.of(run, ours=True, backend=f"{backend} {config}")


def configs_of(op: str, backend: str, layer: ConvLayer, dtype: str, inputs) -> list[dict]:
    """Every config that a backend has for a layer's inputs (x, [z], w, b); empty without any."""
    configs = OPS[op].impls[backend].configs
    if configs is None:
        return []
    x, *rest, w, b = inputs
    with precision(dtype):
        return configs(x, w, *rest, b, *_geometry(layer))


def fastest(candidates: dict[str, Candidate], inputs, device: torch.device) -> str:
    """The name of the candidate that takes the least time on these inputs; RuntimeError if none runs.

    Its result is not looked at here: it is checked as every other row's."""
    bound, reasons = {}, []
    for name, candidate in candidates.items():
        try:
            bound[name] = candidate.bind(*inputs)
            bound[name]()
        except RuntimeError as error:
            bound.pop(name, None)
            reasons.append(str(error))
    if not bound:
        raise RuntimeError(reasons[0])
    times = timing.interleaved(
        bound, device, min_rounds=5, max_rounds=15, max_seconds=0.02 * len(bound),
        warmup_seconds=0.0,
    )  # fmt: skip
    return min(times, key=lambda name: times[name].median)


def own_candidate(layer: ConvLayer, residual: bool, dtype: str, device: torch.device) -> Candidate:
    """The fastest of our kernels at this layer: every backend's own choice, and every instance of
    the CUDA kernels. Found at the first call, outside the timed region."""
    op = "conv2d_add_relu" if residual else "conv2d_relu"
    found: list[tuple[str, Candidate]] = []

    def best(inputs) -> tuple[str, Candidate]:
        if not found:
            names = [b for b in backends_of(op, device) if b != "cudnn"]
            choices = {name: our_candidate(layer, residual, name) for name in names}
            for config in configs_of(op, "cuda", layer, dtype, inputs) if "cuda" in names else ():
                choices[config["instance"]] = one_config(op, "cuda", config, layer)
            name = fastest(choices, inputs, device)
            found.append((name, choices[name]))
        return found[0]

    return Candidate(
        lambda *inputs: best(inputs)[1].bind(*inputs),
        ours=True,
        explain=lambda *inputs: best(inputs)[0],
    )


def _without_gradients(fn: Callable) -> Callable:
    def run(*inputs):
        with torch.no_grad():
            return fn(*inputs)

    return run


def _arguments(inputs) -> tuple[torch.Tensor, ...]:
    """(x, z) or (x,) of a case's inputs: what is no constant."""
    return inputs[:-2]


def _compile_candidates(layer: ConvLayer, modes: Iterable[str]) -> dict[str, Candidate]:
    def build(mode, *inputs):
        return _without_gradients(compiled(_Layer(*inputs[-2:], layer).eval(), mode))

    def bind(run, *inputs):
        return partial(run, *_arguments(inputs))

    return {f"compile {m}": engines.built_once(partial(build, m), bind) for m in modes}


def _engine_candidates(layer: ConvLayer, batch: int, dtype: str) -> dict[str, Candidate]:
    def graph(*inputs):
        x, *z, w, b = inputs
        shape = layer.output_shape(batch)
        return engines.CudnnGraph(x, w, b, z[0] if z else None, shape, layer.stride, layer.padding)

    def run_graph(engine, *inputs):
        x, *z, w, b = inputs
        return partial(engine, x, w, b, *z)

    def tensorrt(*inputs):
        module = _Layer(*inputs[-2:], layer).eval()
        return engines.TensorRT(module, _arguments(inputs), tf32=dtype == "tf32")

    return {
        "cudnn graph": engines.built_once(graph, run_graph),
        "tensorrt": engines.built_once(tensorrt, lambda e, *inputs: e.bind(*_arguments(inputs))),
    }


def make_case(
    layer: ConvLayer, batch: int, residual: bool, dtype: str, layout: str, device: torch.device,
    rivals: Rivals = Rivals(), name: str = "",
) -> Case:  # fmt: skip
    """One layer at one batch size. Its weights are drawn once, as in use; the rest changes."""
    weights: list[torch.Tensor] = []

    def make_inputs(generator):
        x = random_tensor(generator, layer.input_shape(batch), dtype, layout)
        if not weights:
            w = random_tensor(generator, layer.weight_shape, dtype, layout)
            # Unit variance out of unit variance in, so that fp16 does not overflow.
            w.mul_((layer.channels * layer.kernel**2) ** -0.5)
            weights.extend((w, random_tensor(generator, (layer.filters,), dtype)))
        if not residual:
            return x, *weights
        return x, random_tensor(generator, layer.output_shape(batch), dtype, layout), *weights

    op = "conv2d_add_relu" if residual else "conv2d_relu"
    eager = _eager(layer, residual)
    candidates = {"eager": Candidate.of(_without_gradients(eager))}
    absent = {}
    if device.type == "cuda":
        candidates["cudnn fused"] = Candidate.of(_without_gradients(_cudnn(layer, residual)))
        for engine, made in _engine_candidates(layer, batch, dtype).items():
            if not rivals.engines:
                continue
            if (reason := engines.why_absent(engine, device)) is None:
                candidates[engine] = made
            else:
                absent[engine] = reason
    candidates |= _compile_candidates(layer, rivals.compile_modes)
    for backend in ("auto", *backends_of(op, device)):
        if backend == "cudnn":
            continue  # the same as the rival above
        label = "cnnkernels" if backend == "auto" else f"cnnkernels {backend}"
        candidates[label] = our_candidate(layer, residual, backend)
    if rivals.own:
        candidates[BEST_OWN] = own_candidate(layer, residual, dtype, device)
    itemsize = dtype_of(dtype).itemsize
    return Case(
        suite="conv",
        name=name or case_name(layer, batch, residual, dtype, layout),
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
        absent=absent,
        extra={"net": layer.net, "layer": layer.label(batch), "batch": batch, "residual": residual},
    )


def case_name(layer: ConvLayer, batch: int, residual: bool, dtype: str, layout: str) -> str:
    return f"{layer.label(batch)}{' +add' if residual else ''} {dtype} {layout}"


def cases(
    device: torch.device,
    *,
    batches: Iterable[int] = (),
    dtypes: Iterable[str] = ("bf16",),
    layout: str = "NHWC",
    only: str = "",
    residual: bool = True,
    rivals: Rivals = Rivals(),
) -> list[Job]:
    """The layers whose label contains ``only``, each also with its residual where it has one."""
    made = []
    for batch in batches or BATCHES[device.type]:
        for dtype in dtypes:
            for layer in LAYERS:
                if only and only not in layer.label(batch):
                    continue
                for add in (False, True) if layer.residual and residual else (False,):
                    arguments = (layer, batch, add, dtype, layout)
                    name = case_name(*arguments)
                    make = partial(make_case, *arguments, device, rivals, name)
                    made.append(Job(name, make))
    return made
