"""Published ImageNet accuracies, for the chart of accuracy against operations. None is measured here."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Top-1 accuracy in percent on ImageNet-1k's validation set, one centre crop unless noted."""

    model: str
    variant: str
    top1: float
    source: str


TORCHVISION = "torchvision documentation, table of classification weights (IMAGENET1K_V1)"
ZEILER = (
    "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks (2013), table 2: "
    "top-1 error 38.3 % of one network, averaged over ten crops"
)

ACCURACIES = [
    Published("alexnet", "torchvision", 56.522, TORCHVISION),
    Published("zfnet", "paper", 61.7, ZEILER),
    Published("vgg11", "torchvision", 69.020, TORCHVISION),
    Published("vgg13", "torchvision", 69.928, TORCHVISION),
    Published("vgg16", "torchvision", 71.592, TORCHVISION),
    Published("vgg19", "torchvision", 72.376, TORCHVISION),
    Published("googlenet", "torchvision", 69.778, TORCHVISION),
    Published("resnet18", "torchvision", 69.758, TORCHVISION),
    Published("resnet34", "torchvision", 73.314, TORCHVISION),
    Published("resnet50", "torchvision", 76.130, TORCHVISION),
    Published("resnet101", "torchvision", 77.374, TORCHVISION),
    Published("resnet152", "torchvision", 78.312, TORCHVISION),
]
