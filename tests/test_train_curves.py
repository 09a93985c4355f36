"""Training with the fused ops follows PyTorch's loss curve: same weights, same batches, no dropout.

What "within noise" means is measured: PyTorch against itself, every weight moved before every step by
as much as a long sum rounds. Curves that differ by rounding alone part like that, slowly at first and
then exponentially; a wrong gradient is seen in the first steps.
"""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnkernels import data, models
from cnnkernels.bench.rivals import eager_twin
from cnnkernels.models.googlenet import Inception
from cnnkernels.nn import Conv2dReLU, Conv2dReLUMaxPool2d, LocalResponseNorm, MaxPool2d

SAMPLE = Path(__file__).parent / "data"
LONG = os.environ.get("CNNKERNELS_LONG_TESTS") == "1"
ROUNDING = 2**-19  # of a weight: sixteen units in the last place, as a sum of some hundreds rounds
MARGIN = 10  # the activations round too
BATCH = 16


def zfnet() -> nn.Module:
    """ZFNet's layers and their order (norm after pool), an eighth as wide, for 32×32 images."""
    pool = {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1}
    return nn.Sequential(
        Conv2dReLUMaxPool2d(3, 12, 7, stride=2, padding=3, **pool), LocalResponseNorm(5, alpha=0.1),
        Conv2dReLUMaxPool2d(12, 32, 5, padding=2, **pool), LocalResponseNorm(5, alpha=0.1),
        Conv2dReLU(32, 48, 3, padding=1), Conv2dReLU(48, 48, 3, padding=1),
        Conv2dReLUMaxPool2d(48, 32, 3, padding=1, **pool), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def vgg() -> nn.Module:
    """VGG-11's convolutions, an eighth as wide."""
    widths, inputs, layers = (8, 16, (32, 32), (64, 64), (64, 64)), 3, []
    for block in widths:
        *first, last = block if isinstance(block, tuple) else (block,)
        for width in first:
            layers.append(Conv2dReLU(inputs, width, 3, padding=1))
            inputs = width
        layers.append(Conv2dReLUMaxPool2d(inputs, last, 3, padding=1))
        inputs = last
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def googlenet() -> nn.Module:
    """GoogLeNet's stem with its normalisation, and two Inception modules."""
    return nn.Sequential(
        Conv2dReLUMaxPool2d(3, 16, 7, stride=2, padding=3), LocalResponseNorm(5),
        Inception(16, (8, 8, 16, 4, 8, 8)), MaxPool2d(3, 2, ceil_mode=True),
        Inception(40, (8, 8, 16, 4, 8, 8)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10),
    )  # fmt: skip


FAMILIES = {  # family: (network, input channels and side, learning rate)
    "lenet5": (functools.partial(models.create, "lenet5_modern"), (1, 28), 0.02),
    "alexnet": (
        functools.partial(models.create, "alexnet", num_classes=10, side=67, width=0.125, dropout=0),
        (3, 67), 0.001,
    ),
    "zfnet": (zfnet, (3, 32), 0.01),
    "vgg": (vgg, (3, 32), 0.01),
    "googlenet": (googlenet, (3, 32), 0.02),
    "resnet": (functools.partial(models.create, "resnet20_cifar", width=8), (3, 32), 0.01),
}  # fmt: skip


@functools.cache
def batches(channels: int, side: int, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    split = data.fashion_mnist(SAMPLE, download=False).train
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(steps):
        chosen = torch.randint(len(split.labels), (BATCH,), generator=generator)
        images = F.interpolate(split.images[chosen].float() / 255, (side, side), mode="bilinear")
        found.append(
            ((images - 0.286).div(0.353).expand(-1, channels, -1, -1), split.labels[chosen])
        )
    return found


def train(
    net: nn.Module, inputs: tuple[int, int], lr: float, steps: int, noise: int = 0, wrong=1.0
):
    """Losses of SGD with momentum. noise (a seed): every weight is moved by ROUNDING before a step; wrong:
    a factor on the first layer's gradient."""
    net = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    generator, losses = torch.Generator().manual_seed(noise), []
    for images, labels in batches(*inputs, steps):
        if noise:
            with torch.no_grad():
                for p in net.parameters():
                    up = torch.rand(p.shape, generator=generator) < 0.5
                    p.mul_(torch.where(up, 1 + ROUNDING, 1 - ROUNDING))
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        if wrong != 1.0:
            next(net.parameters()).grad.mul_(wrong)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).double()


def deviation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Largest difference up to each step."""
    return (a - b).abs().cummax(0).values


def check(family: str, steps: int) -> dict:
    torch.set_num_threads(1)
    make, inputs, lr = FAMILIES[family]
    torch.manual_seed(0)
    ours = make()
    for p in ours.parameters():
        if p.dim() > 1:  # the published nets' small weights would learn little in so few steps
            nn.init.kaiming_normal_(p)
    twin = eager_twin(ours)
    run = functools.partial(train, inputs=inputs, lr=lr, steps=steps)
    torchs = run(twin)
    noise = torch.stack([deviation(torchs, run(twin, noise=seed)) for seed in (1, 2, 3)]).amax(0)
    bound = MARGIN * noise.clamp(min=2**-22)
    difference = deviation(torchs, run(ours))
    head, tail = torchs[:5].mean(), torchs[-5:].mean()
    assert tail < 0.9 * head, f"nothing was learned: {head} to {tail}"
    over = (difference > bound).nonzero()
    assert not len(over), (
        f"step {int(over[0])}: {difference[over[0]]} from PyTorch, noise {noise[over[0]]}"
    )
    # The bound means something: one layer's gradient half too large breaks it.
    early = min(steps, 30)
    off = deviation(torchs[:early], train(ours, inputs, lr, early, wrong=1.5))
    assert (off > bound[:early]).any()
    return {"first": float(head), "last": float(tail), "difference": float(difference[-1]),
            "noise": float(noise[-1])}  # fmt: skip


@pytest.mark.parametrize("family", ["alexnet", "resnet"])
def test_thirty_steps_follow_torch(family):
    check(family, 30)


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="minutes of training: set CNNKERNELS_LONG_TESTS=1")
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_steps_follow_torch(family):
    print(family, check(family, 200))
