"""AlexNet (Krizhevsky, Sutskever & Hinton, 2012), two towers as published, and torchvision's form."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cnnkernels.nn import (
    Conv2dReLU,
    Conv2dReLUMaxPool2d,
    LocalResponseNorm,
    MaxPool2d,
    ReLULRNMaxPool2d,
)

from .registry import register

# layer: (out_channels, kernel_size, stride, padding, two towers, followed by norm, by pool)
CONVS = {
    1: (96, 11, 4, 0, False, True, True),
    2: (256, 5, 1, 2, True, True, True),
    3: (384, 3, 1, 1, False, False, False),
    4: (384, 3, 1, 1, True, False, False),
    5: (256, 3, 1, 1, True, False, True),
}
HIDDEN = {6: 4096, 7: 4096}
# The paper multiplies alpha = 1e-4 by the *sum* over 5 channels; torch, Caffe and cuDNN by the mean.
LRN = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}
POOL = {"kernel_size": 3, "stride": 2}
FUSED_POOL = {f"pool_{key}": value for key, value in POOL.items()}


class AlexNet(nn.Module):
    """The network of 2012: [N, 3, side, side] → [N, num_classes]; 227 as published.

    Args:
        num_classes: outputs of the last layer.
        towers: 2 as published (conv2, conv4 and conv5 see half of the channels), or 1.
        order: "norm_pool" as published, or "pool_norm" (Caffe's, and the usual slide's).
        dropout: probability after layers 6 and 7.
        without: layers to leave out, any of 2…7, as in the ablations of Zeiler & Fergus: what is
            left is re-wired to the channels it then gets.
        side: of the images, at least 67.
        width: factor on the channels and hidden units of every layer.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        towers: int = 2,
        order: str = "norm_pool",
        dropout: float = 0.5,
        without: tuple[int, ...] = (),
        side: int = 227,
        width: float = 1.0,
    ):
        super().__init__()
        if towers not in (1, 2):
            raise ValueError(f"towers is {towers!r}; allowed are 1 and 2")
        if order not in ("norm_pool", "pool_norm"):
            raise ValueError(f"order is {order!r}; allowed are 'norm_pool' and 'pool_norm'")
        if not set(without) <= set(range(2, 8)):
            raise ValueError(f"without is {without!r}; allowed are layers 2 to 7")
        if side < 67:
            raise ValueError(f"side is {side!r}; it must be at least 67, or nothing is left of it")
        if not 0 < width * 16 == int(width * 16):
            raise ValueError(f"width is {width!r}; it must be a positive multiple of 1/16")
        self.input_size = (3, side, side)
        features: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for i, (full, kernel, stride, padding, split, norm, pool) in CONVS.items():
            out = int(full * width)
            if i in without and pool:
                features[f"pool{i}"] = MaxPool2d(**POOL)
            if i not in without:
                conv = {"stride": stride, "padding": padding, "groups": towers if split else 1}
                if norm and order == "norm_pool":
                    features[f"conv{i}"] = nn.Conv2d(channels, out, kernel, **conv)
                    features[f"norm{i}"] = ReLULRNMaxPool2d(**LRN, **POOL)
                elif pool:
                    features[f"conv{i}"] = Conv2dReLUMaxPool2d(
                        channels, out, kernel, **conv, **FUSED_POOL
                    )
                else:
                    features[f"conv{i}"] = Conv2dReLU(channels, out, kernel, **conv)
                if norm and order == "pool_norm":
                    features[f"norm{i}"] = LocalResponseNorm(**LRN)
                channels, side = out, (side + 2 * padding - kernel) // stride + 1
            if pool:
                side = (side - 3) // 2 + 1
        self.features = nn.Sequential(features)
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = channels * side * side
        for i, full in HIDDEN.items():
            if i not in without:
                hidden = int(full * width)
                classifier[f"fc{i}"] = nn.Linear(inputs, hidden)
                classifier[f"relu{i}"] = nn.ReLU(inplace=True)
                classifier[f"drop{i}"] = nn.Dropout(dropout)
                inputs = hidden
        classifier["fc8"] = nn.Linear(inputs, num_classes)
        self.classifier = nn.Sequential(classifier)
        self._init_weights()

    def _init_weights(self) -> None:
        """As published: weights N(0, 0.01²); biases 1 in layers 2, 4, 5, 6 and 7, otherwise 0."""
        for name, layer in (*self.features.named_children(), *self.classifier.named_children()):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, float(name[-1] in "24567"))

    def forward(self, x: Tensor) -> Tensor:
        side = self.input_size[-1]
        torch._assert(x.shape[-1] == side, f"input has shape {x.shape}; its side must be {side}")
        return self.classifier(torch.flatten(self.features(x), 1))


class TorchvisionAlexNet(nn.Module):
    """torchvision's AlexNet (after Krizhevsky 2014): one tower, no LRN; [N, 3, ≥63, ≥63]."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5):
        super().__init__()
        # The keys are the indices in torchvision's Sequential of the convolutions.
        self.features = nn.Sequential(
            OrderedDict(
                {
                    "0": Conv2dReLUMaxPool2d(3, 64, 11, stride=4, padding=2, **FUSED_POOL),
                    "3": Conv2dReLUMaxPool2d(64, 192, 5, padding=2, **FUSED_POOL),
                    "6": Conv2dReLU(192, 384, 3, padding=1),
                    "8": Conv2dReLU(384, 256, 3, padding=1),
                    "10": Conv2dReLUMaxPool2d(256, 256, 3, padding=1, **FUSED_POOL),
                }
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def build_alexnet(variant: str, **kwargs) -> nn.Module:
    """``variant="paper"``: see :class:`AlexNet`; "torchvision": :class:`TorchvisionAlexNet`."""
    if variant == "paper":
        return AlexNet(**kwargs)
    model = TorchvisionAlexNet(**kwargs)
    model.input_size = (3, 224, 224)
    return model


alexnet = register(
    "alexnet",
    build_alexnet,
    input_size=(3, 227, 227),
    variants=("paper", "torchvision"),
    doc="AlexNet: 60,965,224 parameters as published, 61,100,840 in torchvision's form.",
)
