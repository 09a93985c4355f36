"""ZFNet (Zeiler & Fergus, 2013): AlexNet with a finer first layer, in one tower."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnkernels.nn import Conv2dReLU, Conv2dReLUMaxPool2d, LocalResponseNorm, ReLULRNMaxPool2d

from .alexnet import LRN
from .registry import register

# 110 → 55 and 26 → 13: windows reach past the edge, as in Caffe.
POOL = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
FUSED_POOL = {"pool_kernel_size": 3, "pool_stride": 2, "ceil_mode": True}


class ZFNet(nn.Module):
    """[N, 3, 224, 224] → [N, num_classes]; sides 224 → 110 → 55 → 26 → 13 → 6.

    Args:
        num_classes: outputs of the last layer.
        widths: channels of layers 3, 4 and 5; (512, 1024, 512) is the wide model.
        order: "pool_norm" as in the paper's figure 3, or "norm_pool" (AlexNet's).
        dropout: probability after layers 6 and 7.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        widths: Sequence[int] = (384, 384, 256),
        order: str = "pool_norm",
        dropout: float = 0.5,
    ):
        super().__init__()
        if len(widths) != 3:
            raise ValueError(f"widths is {widths!r}; it must be three channel counts")
        if order not in ("norm_pool", "pool_norm"):
            raise ValueError(f"order is {order!r}; allowed are 'norm_pool' and 'pool_norm'")

        def normed(i: int, *conv, **kwargs) -> dict[str, nn.Module]:
            if order == "norm_pool":
                tail = ReLULRNMaxPool2d(**LRN, **POOL)
                return {f"conv{i}": nn.Conv2d(*conv, **kwargs), f"norm{i}": tail}
            head = Conv2dReLUMaxPool2d(*conv, **kwargs, **FUSED_POOL)
            return {f"conv{i}": head, f"norm{i}": LocalResponseNorm(**LRN)}

        w3, w4, w5 = widths
        self.features = nn.Sequential(
            OrderedDict(
                {
                    **normed(1, 3, 96, 7, stride=2, padding=1),
                    **normed(2, 96, 256, 5, stride=2),
                    "conv3": Conv2dReLU(256, w3, 3, padding=1),
                    "conv4": Conv2dReLU(w3, w4, 3, padding=1),
                    "conv5": Conv2dReLUMaxPool2d(
                        w4, w5, 3, padding=1, pool_kernel_size=3, pool_stride=2
                    ),
                }
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(w5 * 6 * 6, 4096),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(dropout),
                fc7=nn.Linear(4096, 4096),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(dropout),
                fc8=nn.Linear(4096, num_classes),
            )
        )
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):  # as published: 1e-2 and 0
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(
            x.shape[-1] == 224, f"input has shape {x.shape}; zfnet takes [N, 3, 224, 224]"
        )
        return self.classifier(torch.flatten(self.features(x), 1))


def build_zfnet(variant: str, **kwargs) -> nn.Module:
    """See :class:`ZFNet`."""
    return ZFNet(**kwargs)


zfnet = register(
    "zfnet",
    build_zfnet,
    input_size=(3, 224, 224),
    doc="ZFNet: 62,357,608 parameters.",
)
