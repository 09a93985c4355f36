"""ResNet (He et al., 2015) for ImageNet and CIFAR, and the plain networks it was compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnkernels.nn import AddReLU, GlobalAvgPool2d, ReLUMaxPool2d

from .registry import register


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and zeros for the channels there are not yet; no weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.extra = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def _shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """The shortcut of a block, None for the identity.

    A: zero-padded identity. B: identity where the shape stays, a 1×1 convolution elsewhere.
    C: a 1×1 convolution everywhere.
    """
    same = stride == 1 and in_channels == out_channels
    if same and option != "C":
        return None
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; [N, in, H, W] → [N, width, H/stride, W/stride].

    ``shortcut=None`` makes the plain network's pair of layers: no addition.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: str | None,
        norm: bool = True,
        **_,
    ):
        super().__init__()

        def bn() -> nn.Module:
            return nn.BatchNorm2d(width) if norm else nn.Identity()

        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=not norm)
        self.bn1 = bn()
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.bn2 = bn()
        self.residual = shortcut is not None
        if self.residual:
            self.downsample = _shortcut(shortcut, in_channels, width, stride)
            self.add_relu = AddReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if not self.residual:
            return self.relu(out)
        return self.add_relu(out, x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Module):
    """1×1 → 3×3 → 1×1 convolutions; [N, in, H, W] → [N, 4·width, H/stride, W/stride].

    ``stride_in_3x3`` is torchvision's place for the stride; the paper's is the first 1×1.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, shortcut: str, stride_in_3x3: bool
    ):
        super().__init__()
        first, middle = (1, stride) if stride_in_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=middle, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(shortcut, in_channels, width * self.expansion, stride)
        self.add_relu = AddReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.add_relu(out, x if self.downsample is None else self.downsample(x))


# depth: (block, blocks in each of the four stages)
IMAGENET = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
CIFAR = (20, 32, 44, 56, 110)


def _stage(block, count: int, in_channels: int, width: int, stride: int, **kwargs) -> nn.Sequential:
    blocks = []
    for i in range(count):
        blocks.append(block(in_channels, width, stride if i == 0 else 1, **kwargs))
        in_channels = width * block.expansion
    return nn.Sequential(*blocks)


def _he_init(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _check_shortcut(shortcut: str | None) -> None:
    if shortcut not in ("A", "B", "C", None):
        raise ValueError(f"shortcut is {shortcut!r}; allowed are 'A', 'B', 'C' and None (plain)")


class ResNet(nn.Module):
    """[N, 3, H, W] → [N, num_classes]; 224 as published.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: outputs of the last layer.
        shortcut: "A", "B" or "C" of the paper's table 3; None for a plain network (18 and 34).
        stride_in_3x3: where a bottleneck with a stride has it; False as published.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 1000,
        shortcut: str | None = "B",
        stride_in_3x3: bool = False,
    ):
        super().__init__()
        if depth not in IMAGENET:
            raise ValueError(f"depth is {depth!r}; allowed are {', '.join(map(str, IMAGENET))}")
        _check_shortcut(shortcut)
        block, counts = IMAGENET[depth]
        if shortcut is None and block is Bottleneck:
            raise ValueError(
                f"shortcut is None and depth {depth}; plain networks are 18 and 34 deep"
            )
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = ReLUMaxPool2d(3, stride=2, padding=1)
        channels = 64
        for i, count in enumerate(counts):
            stage = _stage(
                block, count, channels, 64 << i, 1 if i == 0 else 2,
                shortcut=shortcut, stride_in_3x3=stride_in_3x3,
            )  # fmt: skip
            self.add_module(f"layer{i + 1}", stage)
            channels = (64 << i) * block.expansion
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(channels, num_classes)
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class CifarResNet(nn.Module):
    """The paper's section 4.2 networks: [N, in_channels, H, W] → [N, num_classes]; 32×32 as published.

    Args:
        depth: 6n + 2 for a whole n ≥ 1: 20, 32, 44, 56 and 110 in the paper.
        num_classes, in_channels: of the data.
        width: channels of the first stage (16 as published), doubled in the second and third.
        shortcut: "A" as published, "B", "C", or None for a plain network.
        norm: False leaves batch norm out, to see what it does to the gradients.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        shortcut: str | None = "A",
        norm: bool = True,
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth!r}; it must be 6n + 2 with n ≥ 1")
        _check_shortcut(shortcut)
        self.input_size = (in_channels, 32, 32)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        channels = width
        for i in range(3):
            stage = _stage(
                BasicBlock, (depth - 2) // 6, channels, width << i, 1 if i == 0 else 2,
                shortcut=shortcut, norm=norm,
            )  # fmt: skip
            self.add_module(f"layer{i + 1}", stage)
            channels = width << i
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(channels, num_classes)
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _imagenet(depth: int):
    def build_resnet(variant: str, **kwargs) -> nn.Module:
        """See :class:`ResNet`."""
        return ResNet(depth, stride_in_3x3=variant == "torchvision", **kwargs)

    return register(
        f"resnet{depth}",
        build_resnet,
        input_size=(3, 224, 224),
        variants=("paper", "torchvision"),
        doc=f"ResNet-{depth}.",
    )


def _plain(depth: int):
    def build_plain(variant: str, **kwargs) -> nn.Module:
        """See :class:`ResNet`."""
        return ResNet(depth, shortcut=None, **kwargs)

    return register(
        f"plain{depth}",
        build_plain,
        input_size=(3, 224, 224),
        doc=f"The plain network of {depth} layers that ResNet-{depth} was compared with.",
    )


def _cifar(kind: str, depth: int):
    def build_cifar(variant: str, **kwargs) -> nn.Module:
        """See :class:`CifarResNet`."""
        if kind == "plain":
            kwargs["shortcut"] = None
        return CifarResNet(depth, **kwargs)

    what = "ResNet" if kind == "resnet" else "The plain network"
    return register(
        f"{kind}{depth}_cifar",
        build_cifar,
        input_size=(3, 32, 32),
        doc=f"{what} of {depth} layers for 32×32 images.",
    )


resnet18, resnet34, resnet50, resnet101, resnet152 = map(_imagenet, IMAGENET)
plain18, plain34 = _plain(18), _plain(34)
(resnet20_cifar, resnet32_cifar, resnet44_cifar, resnet56_cifar, resnet110_cifar) = (
    _cifar("resnet", depth) for depth in CIFAR
)
(plain20_cifar, plain32_cifar, plain44_cifar, plain56_cifar, plain110_cifar) = (
    _cifar("plain", depth) for depth in CIFAR
)
