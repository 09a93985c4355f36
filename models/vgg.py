"""VGG (Simonyan & Zisserman, 2014): configurations A, B, D and E, with and without batch norm."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cnnkernels.nn import Conv2dReLU, Conv2dReLUMaxPool2d, ReLUMaxPool2d

from .registry import register

# depth: 3×3 convolutions in each of the five blocks; a 2×2 max-pool ends every block
BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
POOL = 2


def _features(blocks: tuple[int, ...], batch_norm: bool) -> nn.Sequential:
    """The convolutions under torchvision's indices, where ReLU, batch norm and pool count as one each."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index, channels = 0, 3
    for count, width in zip(blocks, WIDTHS):
        for i in range(count):
            last = i == count - 1
            conv = {"in_channels": channels, "out_channels": width, "kernel_size": 3, "padding": 1}
            if batch_norm:
                layers[str(index)] = nn.Conv2d(**conv)
                layers[str(index + 1)] = nn.BatchNorm2d(width)
                layers[str(index + 2)] = ReLUMaxPool2d(POOL) if last else nn.ReLU(inplace=True)
            elif last:
                layers[str(index)] = Conv2dReLUMaxPool2d(**conv, pool_kernel_size=POOL)
            else:
                layers[str(index)] = Conv2dReLU(**conv)
            index += (3 if batch_norm else 2) + last
            channels = width
    return nn.Sequential(layers)


class VGG(nn.Module):
    """[N, 3, H, W] → [N, num_classes] with H, W ≥ 32 (224 as published).

    Args:
        depth: 11, 13, 16 or 19 weight layers.
        batch_norm: a batch norm after every convolution (torchvision's ``_bn`` models).
        num_classes: outputs of the last layer.
        dropout: probability after the first two fully connected layers.
    """

    def __init__(
        self, depth: int, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5
    ):
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth is {depth!r}; allowed are {', '.join(map(str, BLOCKS))}")
        self.features = _features(BLOCKS[depth], batch_norm)
        # The identity on 7×7, where a 224 input ends; other sizes are pooled to it.
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        # N(0, 0.01²) needed pre-training from configuration A; He's rule trains all from scratch.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def build_vgg(variant: str, depth: int, batch_norm: bool, **kwargs) -> nn.Module:
    """See :class:`VGG`; both variants are one network."""
    return VGG(depth, batch_norm, **kwargs)


def _constructor(depth: int, batch_norm: bool):
    def build(variant: str, **kwargs) -> nn.Module:
        return build_vgg(variant, depth, batch_norm, **kwargs)

    build.__name__ = "build_vgg"
    return register(
        f"vgg{depth}{'_bn' if batch_norm else ''}",
        build,
        input_size=(3, 224, 224),
        # The paper has no batch norm.
        variants=("torchvision",) if batch_norm else ("paper", "torchvision"),
        doc=f"VGG-{depth}{' with batch norm' if batch_norm else ''}.",
    )


vgg11 = _constructor(11, False)
vgg11_bn = _constructor(11, True)
vgg13 = _constructor(13, False)
vgg13_bn = _constructor(13, True)
vgg16 = _constructor(16, False)
vgg16_bn = _constructor(16, True)
vgg19 = _constructor(19, False)
vgg19_bn = _constructor(19, True)
