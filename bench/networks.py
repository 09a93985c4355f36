"""Cases of whole networks: ours against PyTorch eager and torch.compile, on photographs."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import data, models
from . import engines
from .case import LAYOUTS, Candidate, Case, dtype_of
from .rivals import compiled, eager_twin, optimizer

CALIBRATION_IMAGES = 8


@dataclass
class Network:
    """A network with random weights, ready to be measured."""

    name: str
    variant: str
    model: nn.Module  # fp32, NCHW, on the CPU, in eval mode
    twin: nn.Module  # the same in torch's own ops
    pool: torch.Tensor  # images to draw batches from, fp32 [M, C, H, W]
    source: str  # what those images are
    flops: int  # of one image: convolutions and matrix products, 2 per multiply-accumulate
    parameters: int

    def facts(self) -> dict:
        """The network's entry in the JSON."""
        return {
            "model": self.name,
            "variant": self.variant,
            "parameters": self.parameters,
            "flops": self.flops,
            "images": self.source,
            "input": list(self.pool.shape[1:]),
            "layers": [],
        }


def parse_name(text: str) -> tuple[str, str | None]:
    """Name and variant of "resnet50:torchvision"; the variant is None in "resnet50"."""
    name, _, variant = text.partition(":")
    return name, variant or None


def _images(model: nn.Module, photographs: bool) -> tuple[torch.Tensor, str]:
    channels, height, _ = model.input_size
    if photographs:
        found = data.photographs(16, height, channels=channels)
        return found.images, found.source
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, *model.input_size, generator=generator), "normal random numbers"


def calibrate(model: nn.Module, images: torch.Tensor) -> None:
    """Give batch norms the statistics of real activations: with fresh ones a deep random network's
    activations grow without bound, and neither errors nor speed would mean anything."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(images)
    model.eval()


def flops_of(model: nn.Module, training: bool = False) -> int:
    """Operations of one image's forward pass, or of a training step, by torch's counter; computed on
    the meta device, without doing them."""
    model = copy.deepcopy(model).to("meta").train(training)
    counter = FlopCounterMode(display=False)
    images = 2  # batch norm needs more than one value per channel in training
    with torch.set_grad_enabled(training), counter:
        out = model(torch.empty(images, *model.input_size, device="meta"))
        if training:
            outs = (out,) if isinstance(out, torch.Tensor) else [o for o in out if o is not None]
            sum(o.sum() for o in outs).backward()
    return counter.get_total_flops() // images


def build(text: str, photographs: bool) -> Network:
    """Make a network from "name" or "name:variant"; random weights, seeded."""
    name, variant = parse_name(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.create(name, variant).eval()
    pool, source = _images(model, photographs)
    twin = eager_twin(model)
    calibrate(twin, pool[:CALIBRATION_IMAGES])
    model.load_state_dict(twin.state_dict())
    return Network(
        name,
        model.variant,
        model,
        twin,
        pool,
        source,
        flops_of(twin),
        sum(p.numel() for p in model.parameters()),
    )


def place(model: nn.Module, device: torch.device, dtype: str, layout: str) -> nn.Module:
    """A copy of a network on a device, in a dtype and a memory layout."""
    model = copy.deepcopy(model).to(device=device, dtype=dtype_of(dtype))
    return model.to(memory_format=LAYOUTS[layout])


def _logits(out) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out[0]


def _inference(model: nn.Module, layout: str | None = None) -> Candidate:
    def bind(x):
        if layout is not None:
            x = x.contiguous(memory_format=LAYOUTS[layout])

        def run():
            with torch.inference_mode():
                return _logits(model(x))

        return run

    return Candidate(bind)


def _optimized(optimize, model: nn.Module, example: torch.Tensor) -> Candidate:
    """optimize()'s version, made before anything is timed. A refusal becomes the row's reason."""
    try:
        optimized = optimize(copy.deepcopy(model), example)
    except Exception as error:  # NotEqual, or a capture that torch.export refuses
        refusal = error

        def bind(x):
            raise refusal

        return Candidate(bind, ours=True)
    return Candidate(_inference(optimized).bind, ours=True)


def draw(
    network: Network, batch: int, device: torch.device, layout: str, generator: torch.Generator
) -> torch.Tensor:
    """A batch of the network's images, fp32 [N, C, H, W]."""
    order = torch.randint(len(network.pool), (batch,), generator=generator, device=generator.device)
    return network.pool[order.cpu()].to(device).contiguous(memory_format=LAYOUTS[layout])


def case_name(network: Network, batch: int, dtype: str, layout: str) -> str:
    return f"{network.name}:{network.variant} batch {batch} {dtype} {layout}"


def case_of(network: Network, batch: int, dtype: str, layout: str, **fields) -> Case:
    """What the cases of inference and of training have in common."""
    return Case(
        dtype=dtype,
        layout=layout,
        shape=(batch, *network.pool.shape[1:]),
        # What a user waits for, the host's work included.
        hide_host=False,
        fast_algorithms=dtype in ("fp32", "tf32"),
        extra={"model": network.name, "variant": network.variant, "batch": batch},
        **fields,
    )


def _rivals(network, twin, dtype, layout, device, modes, other_layout):
    """(candidates, absent ones and why): eager first, which the ratios are against."""
    found, absent = {"eager": _inference(twin)}, {}
    if other_layout:
        other = "NCHW" if layout == "NHWC" else "NHWC"
        found[f"eager {other}"] = _inference(place(network.twin, device, dtype, other), other)
        if device.type == "cuda" and (reason := engines.why_absent("tensorrt", device)):
            absent["tensorrt"] = reason
        elif device.type == "cuda":
            found["tensorrt"] = engines.built_once(
                lambda x: engines.TensorRT(twin, (x,), tf32=dtype == "tf32"),
                lambda engine, x: engine.bind(x),
            )
    for mode in modes:
        run = compiled(copy.deepcopy(twin), mode, graphs=True)
        found[f"compile {mode}"] = replace(_inference(run), slow=True)
    return found, absent


def make_case(
    network: Network,
    batch: int,
    dtype: str,
    layout: str,
    device: torch.device,
    compile_modes: tuple[str, ...] = (),
    other_layout: bool = False,
    passes: tuple[str, ...] = (),
) -> Case:
    """A network's forward pass at one batch size; rivals run at the same precision.

    compile_modes: of rivals.COMPILE_MODES, to run beside eager.
    other_layout: also run eager PyTorch in the other memory layout, and TensorRT.
    passes: also run optimize() with these of its optional rewrites, as "merge+concat".
    """
    ours = place(network.model, device, dtype, layout)
    twin = place(network.twin, device, dtype, layout)
    exact = copy.deepcopy(network.twin).to(device).double()

    def make_inputs(generator):
        x = draw(network, batch, device, layout, generator)
        flip = torch.rand(batch, generator=generator, device=device) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(3), x).to(dtype_of(dtype))
        return (x.contiguous(memory_format=LAYOUTS[layout]),)

    candidates, absent = _rivals(network, twin, dtype, layout, device, compile_modes, other_layout)
    candidates["cnnkernels"] = Candidate(_inference(ours).bind, ours=True)
    if (optimize := optimizer()) is not None:
        (example,) = make_inputs(torch.Generator(device).manual_seed(0))
        candidates["cnnkernels optimized"] = _optimized(optimize, ours, example)
        for names in passes:
            rewritten = partial(optimize, passes=names.split("+"))
            candidates[f"cnnkernels optimized {names}"] = _optimized(rewritten, ours, example)
    itemsize = dtype_of(dtype).itemsize
    with torch.no_grad():
        outputs = _logits(network.twin(network.pool[:1])).numel()
    return case_of(
        network, batch, dtype, layout,
        suite="models",
        name=case_name(network, batch, dtype, layout),
        op="network",
        device=device,
        make_inputs=make_inputs,
        candidates=candidates,
        absent=absent,
        oracle=lambda x: _logits(exact(x)),
        flops=network.flops * batch,
        read_bytes=(network.parameters + batch * network.pool[0].numel()) * itemsize,
        write_bytes=batch * outputs * itemsize,
        slack=2.0,
    )  # fmt: skip
