"""Cases of ``cnnkernels bench train``: one training step, its gradients checked with fp64.

A step is forward, cross-entropy, backward and SGD with momentum. Reduced precision is autocast over
fp32 parameters. So that every candidate's gradients can be compared, the learning rate is 0 (the
update runs all the same) and dropout keeps everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from .case import LAYOUTS, Candidate, Case, dtype_of
from .networks import Network, case_name, case_of, draw, flops_of
from .rivals import compiled

FAMILIES = ("lenet5_modern", "alexnet", "vgg16", "googlenet", "resnet50")
QUICK_FAMILIES = {"cuda": ("alexnet", "resnet50"), "cpu": ("lenet5_modern", "resnet18")}
BATCH = {"cuda": 64, "cpu": 4}
AUXILIARY_WEIGHT = 0.3  # Szegedy et al. 2014, section 5
CLASSES = 10


def _loss(out, target: torch.Tensor) -> torch.Tensor:
    outs = (out,) if isinstance(out, torch.Tensor) else tuple(o for o in out if o is not None)
    loss = F.cross_entropy(outs[0].float() if outs[0].dtype.itemsize < 4 else outs[0], target)
    for other in outs[1:]:
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(other.float(), target)
    return loss


def _ready(model: nn.Module, device: torch.device, layout: str, dtype=None) -> nn.Module:
    model = copy.deepcopy(model).to(device=device, dtype=dtype).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(memory_format=LAYOUTS[layout])


def _gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _candidate(model: nn.Module, call: Callable, dtype: str, device: torch.device, ours: bool):
    """Timed: a whole step. Its result is the loss and all gradients as one vector, put together from
    the timed step's gradients by what reads it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    lowered = dtype in ("fp16", "bf16")

    def bind(x, target):
        optimizer.zero_grad(set_to_none=True)

        def run():
            with torch.autocast(device.type, dtype_of(dtype), enabled=lowered):
                loss = _loss(call(x), target)
            loss.backward()
            optimizer.step()
            return _Step(loss.detach(), model)

        return run

    return Candidate(bind, ours=ours)


class _Step:
    """(loss, gradients): the gradients are gathered when looked at, outside the timed region."""

    def __init__(self, loss: torch.Tensor, model: nn.Module):
        self.loss = loss
        self.gradients = [p.grad for p in model.parameters() if p.grad is not None]

    def __iter__(self):
        yield self.loss.reshape(1)
        yield torch.cat([g.flatten() for g in self.gradients])


def make_case(
    network: Network,
    batch: int,
    dtype: str,
    layout: str,
    device: torch.device,
    compile_modes: tuple[str, ...] = (),
) -> Case:
    """One training step of a network: ours, eager PyTorch and torch.compile."""
    twin = _ready(network.twin, device, layout)
    ours = _ready(network.model, device, layout)
    exact = _ready(network.twin, device, "NCHW", torch.float64)

    def make_inputs(generator):
        x = draw(network, batch, device, layout, generator)
        return x, torch.randint(CLASSES, (batch,), generator=generator, device=device)

    def oracle(x, target):
        exact.zero_grad(set_to_none=True)
        loss = _loss(exact(x), target.long())
        loss.backward()
        return loss.detach().reshape(1), _gradients(exact)

    candidates = {"eager": _candidate(twin, twin, dtype, device, False)}
    for mode in compile_modes:
        model = _ready(network.twin, device, layout)
        made = _candidate(model, compiled(model, mode), dtype, device, False)
        candidates[f"compile {mode}"] = replace(made, slow=True)
    candidates["cnnkernels"] = _candidate(ours, ours, dtype, device, True)
    return case_of(
        network, batch, dtype, layout,
        suite="train",
        name=f"train {case_name(network, batch, dtype, layout)}",
        op="training step",
        device=device,
        make_inputs=make_inputs,
        candidates=candidates,
        oracle=oracle,
        per_image=(True, True),
        flops=flops_of(network.twin, training=True) * batch,
        # Parameters read twice, gradient and momentum written, parameters written: fp32 all.
        read_bytes=4 * (2 * network.parameters + batch * network.pool[0].numel()),
        write_bytes=4 * 3 * network.parameters,
        slack=4.0,
        whole=True,
    )  # fmt: skip
