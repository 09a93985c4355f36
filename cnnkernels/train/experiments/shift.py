"""Shift the input: what convolution does (moves along) and what pooling adds (stays the same)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import normalize
from ..batches import spaced
from ..log import figure_of
from ..recipe import INIT, derive
from .common import Setting

MARGIN = 6  # black pixels around the image, so that a shift loses nothing


class Net(nn.Module):
    """Two 5×5 convolutions, each followed by a halving, and a linear layer; [N, C, H, W] → [N, K].

    ``pooling`` decides how the sides are halved: the largest of each 3×3 window, or every second
    pixel. Both have the same parameters and operations in their layers.
    """

    def __init__(self, channels: int, classes: int, side: int, pooling: bool, width: int = 16):
        super().__init__()
        self.pooling = pooling
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        after = (side + 3) // 4  # halved twice, rounding up
        self.head = nn.Linear(2 * width * after * after, classes)

    def halve(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pooling else x[:, :, ::2, ::2]

    def features(self, x: Tensor) -> Tensor:
        return self.halve(F.relu(self.conv2(self.halve(F.relu(self.conv1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def _accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    right = sum(
        int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500))
    )
    return 100 * right / len(labels)


def _change(a: Tensor, b: Tensor) -> float:
    """Relative distance of two sets of feature maps: 0 the same, √2 unrelated."""
    return float((a - b).norm() / (0.5 * (a.norm() ** 2 + b.norm() ** 2)).sqrt())


def _train(net: Net, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    steps = max(1, len(labels) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(labels), generator=generator)[: steps * 64].split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()


def shift(setting: Setting, furthest: int = 6) -> dict:
    """Train the same net with and without pooling; test both on shifted images.

    Three measures by shift in pixels: how far the first convolution's output of the shifted image
    is from its shifted output (equivariance: 0), how much the last feature maps change, and the
    accuracy; training images are not shifted.
    """
    if not 1 <= furthest <= MARGIN:
        raise ValueError(f"furthest is {furthest}; it must be 1 to {MARGIN}")
    data = setting.load("digits")
    device, limit = setting.place.device, setting.limit or (None if setting.full else 4000)
    sets = []
    for split, n in ((data.train, limit), (data.test, setting.test_limit)):
        chosen = spaced(len(split.labels), n)
        x = normalize(F.pad(split.images[chosen], (MARGIN,) * 4), data.mean, data.std)
        sets.append((x.to(device), split.labels[chosen].to(device)))
    (images, labels), (test, test_labels) = sets
    shifts = list(range(furthest + 1))
    black = test.new_tensor([-m / s for m, s in zip(data.mean, data.std)]).view(-1, 1, 1)

    def moved(x: Tensor, by: int) -> Tensor:
        edge = black.expand(*x.shape[:3], by)
        return torch.cat((edge, x[..., : x.shape[-1] - by]), -1)

    nets = {}
    for name, pooling in (("with pooling", True), ("without pooling", False)):
        torch.manual_seed(derive(setting.seed, INIT))
        net = Net(data.channels, len(data.classes), images.shape[-1], pooling).to(device)
        _train(net, images, labels, setting.epochs or (12 if setting.full else 3), setting.seed)
        net.eval()
        with torch.no_grad():
            some = test[:200]
            conv, features = net.conv1(some), net.features(some)
            inner = slice(2 + furthest, -2)  # columns that see neither edge
            nets[name] = {
                "equivariance_error": [
                    _change(
                        net.conv1(moved(some, s))[..., inner],
                        F.pad(conv, (s, 0))[..., : conv.shape[-1]][..., inner],
                    )
                    for s in shifts
                ],
                "feature_change": [_change(net.features(moved(some, s)), features) for s in shifts],
                "accuracy": [_accuracy(net, moved(test, s), test_labels) for s in shifts],
            }
        setting.say(
            f"{name}: test accuracy {nets[name]['accuracy'][0]:.1f} %, shifted by 2 pixels "
            f"{nets[name]['accuracy'][min(2, furthest)]:.1f} %, by {furthest} "
            f"{nets[name]['accuracy'][-1]:.1f} %"
        )
    figure = figure_of(11)
    titles = {
        "equivariance_error": "conv(shifted) against shifted conv", "feature_change":
        "change of the last feature maps", "accuracy": "test accuracy, %",
    }  # fmt: skip
    for axes, (measure, title) in zip(figure.subplots(1, 3), titles.items()):
        for name, values in nets.items():
            axes.plot(shifts, values[measure], "o-", label=name)
        axes.set(title=title, xlabel="shift, pixels", ylim=(0, 1 if "equi" in measure else None))
        axes.grid(alpha=0.3)
    axes.legend()
    result = {"data": str(data), "shifts": shifts, "nets": nets}
    return setting.write("shift", result, figure)
