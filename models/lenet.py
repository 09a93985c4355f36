"""LeNet-5 (LeCun, Bottou, Bengio & Haffner, 1998) as published, and the form usual today."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cnnkernels.nn import Conv2dReLU, Conv2dReLUMaxPool2d

from .registry import register

# Table I of the paper: the S2 maps that each of the 16 maps of C3 sees; 60 connections.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The output codes: digits drawn on 7 × 12, after the paper's figure 3.
DIGITS = (
    "....... ..###.. .#...#. ##...## ##...## ##...## ##...## ##...## ##...## .#...#. ..###.. .......",
    "....... ...##.. ..###.. .####.. ...##.. ...##.. ...##.. ...##.. ...##.. ...##.. .###### .......",
    "....... .#####. ##...## .....## .....## ....##. ...##.. ..##... .##.... ##..... ####### .......",
    "....... ####### .....## ....##. ...##.. ..####. .....## .....## .....## ##...## .#####. .......",
    "....... ....##. ...###. ..####. .##.##. ##..##. ####### ....##. ....##. ....##. ....##. .......",
    "....... ####### ##..... ##..... ######. .....## .....## .....## .....## ##...## .#####. .......",
    "....... ..####. .##.... ##..... ##..... ######. ##...## ##...## ##...## ##...## .#####. .......",
    "....... ####### ##...## .....## ....##. ....##. ...##.. ...##.. ..##... ..##... ..##... .......",
    "....... .#####. ##...## ##...## ##...## .#####. ##...## ##...## ##...## ##...## .#####. .......",
    "....... .#####. ##...## ##...## ##...## ##...## .###### .....## .....## ....##. .####.. .......",
)


def digit_codes() -> Tensor:
    """The bitmaps as ±1: [10, 84], float32."""
    pixels = [
        [1.0 if pixel == "#" else -1.0 for pixel in digit.replace(" ", "")] for digit in DIGITS
    ]
    return torch.tensor(pixels)


class ScaledTanh(nn.Module):
    """``1.7159 tanh(2x/3)``: ±1 maps to itself, where the curvature is greatest (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class SubSampling(nn.AvgPool2d):
    """S2, S4: the sum over 2×2 times a trainable coefficient plus a bias, per map.

    [N, C, H, W] → [N, C, H/2, W/2]; parameters weight and bias [C].
    """

    def __init__(self, channels: int):
        super().__init__(2, divisor_override=1)
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight[:, None, None] + self.bias[:, None, None]


class SparseConv2d(nn.Conv2d):
    """A convolution whose map ``o`` sees only the input maps ``table[o]``; weight [connections, k, k]."""

    def __init__(self, in_channels: int, table: tuple[tuple[int, ...], ...], kernel_size: int):
        super().__init__(in_channels, len(table), kernel_size)
        rows = [o * in_channels + i for o, inputs in enumerate(table) for i in inputs]
        self.register_buffer("connections", torch.tensor(rows), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(rows), *self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        dense = self.weight.new_zeros(self.out_channels * self.in_channels, *self.kernel_size)
        dense = dense.index_copy(0, self.connections, self.weight)
        return self._conv_forward(x, dense.unflatten(0, (self.out_channels, -1)), self.bias)


class RBF(nn.Module):
    """Minus the squared distance to each code: [N, 84] → [N, classes]; the codes are fixed."""

    def __init__(self, codes: Tensor):
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None, :] - self.codes).square().sum(-1)


class LeNet5(nn.Module):
    """The network of 1998: [N, 1, 32, 32] → [N, 10]; 60,000 trainable parameters, 840 fixed ones.

    The output is minus the paper's penalty (squared distance to the digit's code), so the largest
    is the answer, as for any classifier. :func:`lenet5_loss` is the paper's criterion.
    """

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(1, 6, 5),
                act1=ScaledTanh(),
                s2=SubSampling(6),
                act2=ScaledTanh(),
                c3=SparseConv2d(6, C3_TABLE, 5),
                act3=ScaledTanh(),
                s4=SubSampling(16),
                act4=ScaledTanh(),
                c5=nn.Conv2d(16, 120, 5),
                act5=ScaledTanh(),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(f6=nn.Linear(120, 84), act6=ScaledTanh(), output=RBF(digit_codes()))
        )
        fan_in = {"c1": 25, "s2": 4, "c5": 400, "s4": 4, "f6": 120}
        for name, layer in (*self.features.named_children(), *self.classifier.named_children()):
            if isinstance(layer, SparseConv2d):
                # A weight's fan-in is that of its map: 3, 4 or 6 inputs of 25 pixels.
                for start, inputs in zip(_starts(C3_TABLE), C3_TABLE):
                    bound = 2.4 / (25 * len(inputs))
                    nn.init.uniform_(layer.weight[start : start + len(inputs)], -bound, bound)
                nn.init.zeros_(layer.bias)
            elif name in fan_in:
                bound = 2.4 / fan_in[name]
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[-1] == 32, f"input has shape {x.shape}; lenet5 takes [N, 1, 32, 32]")
        return self.classifier(torch.flatten(self.features(x), 1))


def _starts(table: tuple[tuple[int, ...], ...]) -> list[int]:
    return [sum(len(row) for row in table[:i]) for i in range(len(table))]


def lenet5_loss(output: Tensor, target: Tensor, j: float = 0.1) -> Tensor:
    """The paper's discriminative criterion (equation 9), mean over the batch; a scalar.

    Args:
        output: [N, 10] of :class:`LeNet5` (minus the penalties).
        target: [N] class indices, int64.
        j: positive; pictures of no class cost nothing beyond it.
    """
    if j <= 0:
        raise ValueError(f"j is {j!r}; it must be positive")
    right = output.gather(1, target[:, None])[:, 0]
    rubbish = output.new_full((len(output), 1), -j)
    return (torch.logsumexp(torch.cat((output, rubbish), 1), 1) - right).mean()


class ModernLeNet5(nn.Module):
    """ReLU, max-pooling, dense C3, linear output: [N, in_channels, 28, 28] → [N, num_classes].

    ``padding=0`` takes 32×32 instead. 61,706 parameters.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, padding: int = 2):
        super().__init__()
        if padding not in (0, 2):
            raise ValueError(f"padding is {padding!r}; allowed are 2 (28×28 input) and 0 (32×32)")
        side = 32 - 2 * padding
        self.input_size = (in_channels, side, side)
        self.features = nn.Sequential(
            OrderedDict(
                c1=Conv2dReLUMaxPool2d(in_channels, 6, 5, padding=padding),
                c3=Conv2dReLUMaxPool2d(6, 16, 5),
                c5=Conv2dReLU(16, 120, 5),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                f6=nn.Linear(120, 84),
                relu6=nn.ReLU(inplace=True),
                output=nn.Linear(84, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        side = self.input_size[-1]
        torch._assert(x.shape[-1] == side, f"input has shape {x.shape}; its side must be {side}")
        return self.classifier(torch.flatten(self.features(x), 1))


def build_lenet5(variant: str) -> nn.Module:
    """See :class:`LeNet5`."""
    return LeNet5()


def build_lenet5_modern(variant: str, **kwargs) -> nn.Module:
    """See :class:`ModernLeNet5`."""
    return ModernLeNet5(**kwargs)


lenet5 = register(
    "lenet5",
    build_lenet5,
    input_size=(1, 32, 32),
    doc="LeNet-5 of 1998: sparse C3, trainable sub-sampling, scaled tanh, RBF output.",
)
lenet5_modern = register(
    "lenet5_modern",
    build_lenet5_modern,
    input_size=(1, 28, 28),
    doc="LeNet-5 as it is usually written today; 61,706 parameters.",
)
