"""GoogLeNet (Szegedy et al., 2014) as published and in torchvision's form, and inception modules."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkernels.nn import (
    Conv2dReLU,
    Conv2dReLUMaxPool2d,
    GlobalAvgPool2d,
    LocalResponseNorm,
    MaxPool2d,
    ReLULRNMaxPool2d,
    ReLUMaxPool2d,
)

from .registry import register

GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])

# module: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection (table 1 of the paper)
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# Caffe's and GoogLeNet's constants; not AlexNet's.
LRN = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}
POOL = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
FUSED_POOL = {"pool_kernel_size": 3, "pool_stride": 2, "ceil_mode": True}


class BasicConv2d(nn.Sequential):
    """torchvision's unit: convolution without bias, batch norm, ReLU (or another ``tail``)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, tail: nn.Module | None = None,
        **kwargs,
    ):  # fmt: skip
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **kwargs),
                bn=nn.BatchNorm2d(out_channels, eps=0.001),
                relu=nn.ReLU(inplace=True) if tail is None else tail,
            )
        )


class Inception(nn.Module):
    """Four branches beside each other, concatenated: [N, C, H, W] → [N, sum of widths, H, W].

    Args:
        in_channels: C.
        widths: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection. A reduction or projection of
            0 is left out: (128, 0, 192, 0, 96, 0) is the naïve module.
        conv: makes a convolution with its ReLU.
        third_kernel: 5 as published; torchvision's model has 3.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int, int, int, int, int],
        conv: Callable[..., nn.Module] = Conv2dReLU,
        third_kernel: int = 5,
    ):
        super().__init__()
        c1, r3, c3, r5, c5, projection = widths

        def reduced(reduce: int, out: int, kernel: int) -> nn.Module:
            layers = [conv(in_channels, reduce, 1)] if reduce else []
            wide = conv(reduce or in_channels, out, kernel, padding=kernel // 2)
            return nn.Sequential(*layers, wide)

        self.branch1 = conv(in_channels, c1, 1)
        self.branch2 = reduced(r3, c3, 3)
        self.branch3 = reduced(r5, c5, third_kernel)
        pool = MaxPool2d(3, stride=1, padding=1, ceil_mode=True)
        project = [conv(in_channels, projection, 1)] if projection else []
        self.branch4 = nn.Sequential(pool, *project)
        self.out_channels = c1 + c3 + c5 + (projection or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x))
        return torch.cat(branches, 1)


class InceptionAux(nn.Module):
    """An auxiliary classifier on [N, C, 14, 14]; ``pool`` makes the 4×4 map."""

    def __init__(
        self, in_channels: int, num_classes: int, conv: Callable[..., nn.Module], pool: nn.Module,
        dropout: float,
    ):  # fmt: skip
        super().__init__()
        self.pool = pool
        self.conv = conv(in_channels, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(self.pool(x)), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x), inplace=True)))


class GoogLeNet(nn.Module):
    """[N, 3, 224, 224] → [N, num_classes]; in training with ``aux_logits``, a :class:`GoogLeNetOutputs`.

    Args:
        published: the network of 2014 (5×5 branches, LRN, biases, no batch norm) or torchvision's
            (3×3 in their place, batch norm).
        num_classes: outputs of each classifier.
        aux_logits: with the two auxiliary classifiers, which only training runs.
        transform_input: torchvision's: takes input normalised as for its other models and
            normalises it as this network's ported weights expect.
        dropout: probability before the last layer; 0.4 as published, 0.2 in torchvision's.
        dropout_aux: in the auxiliary classifiers.
    """

    def __init__(
        self,
        published: bool = True,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float | None = None,
        dropout_aux: float = 0.7,
    ):
        super().__init__()
        self.aux_logits, self.transform_input = aux_logits, transform_input
        dropout = (0.4 if published else 0.2) if dropout is None else dropout
        conv = Conv2dReLU if published else BasicConv2d
        if published:
            # Sides 224 → 112 → 56.
            self.conv1 = Conv2dReLUMaxPool2d(3, 64, 7, stride=2, padding=3, **FUSED_POOL)
            self.maxpool1 = LocalResponseNorm(**LRN)
            self.conv2 = Conv2dReLU(64, 64, 1)
            self.conv3 = nn.Conv2d(64, 192, 3, padding=1)
            self.maxpool2 = ReLULRNMaxPool2d(**LRN, **POOL)
        else:
            pool = ReLUMaxPool2d(**POOL)
            self.conv1 = BasicConv2d(3, 64, 7, tail=pool, stride=2, padding=3)
            self.maxpool1 = nn.Identity()  # in conv1's tail
            self.conv2 = BasicConv2d(64, 64, 1)
            self.conv3 = BasicConv2d(64, 192, 3, tail=ReLUMaxPool2d(**POOL), padding=1)
            self.maxpool2 = nn.Identity()
        # torchvision's last pool is 2×2; on the even side 14 both give 7.
        pools = {"3b": MaxPool2d(**POOL), "4e": MaxPool2d(3 if published else 2, 2, ceil_mode=True)}
        channels, trunk, in_aux = 192, [], []
        for name, widths in INCEPTIONS.items():
            if name in ("4b", "4e"):
                in_aux.append(channels)
            module = Inception(channels, widths, conv, 5 if published else 3)
            channels = module.out_channels
            self.add_module(f"inception{name}", module)
            trunk.append(f"inception{name}")
            if name in pools:
                trunk.append(f"maxpool{name[0]}")
                self.add_module(trunk[-1], pools[name])
        self._trunk = tuple(trunk)
        for i, width in enumerate(in_aux if aux_logits else (), 1):
            pool = nn.AvgPool2d(5, stride=3) if published else nn.AdaptiveAvgPool2d((4, 4))
            self.add_module(f"aux{i}", InceptionAux(width, num_classes, conv, pool, dropout_aux))
        self.avgpool = GlobalAvgPool2d()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self._init_weights(published)

    def _init_weights(self, published: bool) -> None:
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                if published:
                    # The paper names no rule; without batch norm 0.01 everywhere dies out.
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.constant_(layer.bias, 0.2 if isinstance(layer, nn.Conv2d) else 0.0)
                else:
                    nn.init.trunc_normal_(layer.weight, std=0.01, a=-2, b=2)

    def _transform(self, x: Tensor) -> Tensor:
        """From mean (.485, .456, .406), std (.229, .224, .225) to mean and std .5."""
        if not self.transform_input:
            return x
        std = torch.tensor((0.229, 0.224, 0.225), dtype=x.dtype, device=x.device) / 0.5
        shift = (torch.tensor((0.485, 0.456, 0.406), dtype=x.dtype, device=x.device) - 0.5) / 0.5
        return x * std[:, None, None] + shift[:, None, None]

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = self.maxpool1(self.conv1(self._transform(x)))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        aux = []
        heads = self.training and self.aux_logits
        for name in self._trunk:
            x = getattr(self, name)(x)
            if heads and name == "inception4a":
                aux.append(self.aux1(x))
            elif heads and name == "inception4d":
                aux.append(self.aux2(x))
        x = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return GoogLeNetOutputs(x, aux[1], aux[0]) if heads else x


def build_googlenet(variant: str, **kwargs) -> nn.Module:
    """See :class:`GoogLeNet`."""
    return GoogLeNet(published=variant == "paper", **kwargs)


def build_inception_naive(
    variant: str, in_channels: int = 256, c1: int = 128, c3: int = 192, c5: int = 96
) -> nn.Module:
    """1×1, 3×3, 5×5 and a pool beside each other: [N, C, H, W] → [N, c1 + c3 + c5 + C, H, W]."""
    return _sized(Inception(in_channels, (c1, 0, c3, 0, c5, 0)), in_channels)


def build_inception_bottleneck(
    variant: str, in_channels: int = 256, c1: int = 128, c3: int = 192, c5: int = 96,
    reduce: int = 64,
) -> nn.Module:  # fmt: skip
    """The same with 1×1 convolutions to ``reduce`` channels before 3×3 and 5×5 and after the pool."""
    return _sized(Inception(in_channels, (c1, reduce, c3, reduce, c5, reduce)), in_channels)


def _sized(module: Inception, in_channels: int) -> Inception:
    module.input_size = (in_channels, 28, 28)
    return module


googlenet = register(
    "googlenet",
    build_googlenet,
    input_size=(3, 224, 224),
    variants=("paper", "torchvision"),
    doc="GoogLeNet: 6,998,552 parameters as published, 13,378,280 with the auxiliary classifiers.",
)
inception_naive = register(
    "inception_naive",
    build_inception_naive,
    input_size=(256, 28, 28),
    doc="The naïve inception module of the lecture's example.",
)
inception_bottleneck = register(
    "inception_bottleneck",
    build_inception_bottleneck,
    input_size=(256, 28, 28),
    doc="The inception module with bottlenecks of the lecture's example.",
)
