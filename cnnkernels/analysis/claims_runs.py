"""Claims 18, 20–22 and 24–28: what takes a run, a measurement, or other people's results."""

from __future__ import annotations

import torch
from torch import nn

from .. import models
from ..data import photographs
from .claims import claim, report
from .equivariance import change_under_shift, equivariance_error
from .gradients import decay, gradient_norms, patches
from .memory import predict_training_memory


@claim(18, "AlexNet training, batch 128, on two GPUs of 3 GB", "fits")
def _():
    whole = predict_training_memory(models.alexnet(device="meta"), 128)
    limit = 3 * 2**30
    return {
        "computed": f"{whole.peak / 2**30:.2f} GiB peak for the whole network, batch 128, fp32",
        "status": "agrees" if whole.peak / 2 < limit else "differs",
        "why": f"Weights, gradients and momentum {3 * whole.weights / 2**30:.2f} GiB, activations kept "
        f"for backward {whole.saved / 2**30:.2f} GiB, without workspaces. Split over two cards, half "
        "on each; 2012's code kept more copies.",
        "command": "cnnkernels inspect alexnet --batch 128 --training-memory",
        "values": dict(whole.__dict__),
    }


def _random_conv() -> nn.Conv2d:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 16, 3, bias=False)
    weight = torch.randn(conv.weight.shape, generator=generator)
    conv.weight = nn.Parameter(weight / weight[0].numel() ** 0.5, requires_grad=False)
    return conv


@claim(20, "Convolution is shift-equivariant; pooling makes features shift-invariant", "–")
def _():
    pictures = photographs(count=1, size=160)
    conv = _random_conv()

    def features(pool: int):
        def compute(x):
            y = torch.relu(conv(x))
            return nn.functional.max_pool2d(y, pool) if pool > 1 else y

        return compute

    exact = equivariance_error(conv, pictures.images, pixels=4)
    change = {
        pool: change_under_shift(features(pool), pictures.images, 1) for pool in (1, 2, 4, 8, 16)
    }
    steps = ", ".join(f"{p}×{p} {c:.3f}" for p, c in change.items() if p > 1)
    return {
        "computed": f"conv: moved input = moved output to {exact:.1e}; features change by "
        f"{change[1]:.3f} of their norm when the picture moves 1 pixel, max-pooled {steps}",
        "status": "measured",
        "why": f"Relative L2 norms on {pictures.names[0]}, random 3×3 filters, ReLU. Pooling is invariant "
        "only approximately, and only to shifts small beside its window.",
        "command": "cnnkernels experiment shift",
        "values": {"equivariance_error": exact, "change_by_pool": change},
    }


@claim(21, "Deep plain networks degrade, residual ones do not (56 vs 20 layers)", "curves")
def _():
    counts = {
        f"{kind}{depth}": report(f"{kind}{depth}_cifar").parameters
        for kind in ("plain", "resnet")
        for depth in (20, 56)
    }
    same = all(counts[f"plain{d}"] == counts[f"resnet{d}"] for d in (20, 56))
    return {
        "computed": f"20 layers {counts['resnet20']:,} and 56 layers {counts['resnet56']:,} parameters, "
        f"plain and residual {'alike' if same else 'different'}",
        "status": "computed",
        "why": "The curves take training.",
        "command": "cnnkernels experiment depth",
        "values": counts,
    }


@claim(22, "Gradients vanish in deep plain networks", "–")
def _():
    image = photographs(count=1, size=128).images[0]
    x = patches(image, 8, 32).double()  # in single precision the smallest would be 0
    y = torch.arange(8)
    found = {}
    with torch.random.fork_rng(devices=[]):
        for kind in ("plain", "resnet"):
            for norm in (True, False):
                torch.manual_seed(0)
                net = models.create(f"{kind}56_cifar", width=8, norm=norm, dtype=torch.float64)
                if not norm:  # torch's default rule: as a network was written before He's
                    for layer in net.modules():
                        if isinstance(layer, nn.Conv2d):
                            layer.reset_parameters()
                found[f"{kind}, {'batch norm' if norm else 'no batch norm'}"] = decay(
                    gradient_norms(net, x, y)
                )
    return {
        "computed": "gradient at the first layer over the last, 56 layers (width 8) at the start of training: "
        + "; ".join(f"{name} {value:.1e}" for name, value in found.items()),
        "status": "measured",
        "why": "On squares of a photograph, by the output of each convolution. Without batch norm (and "
        "with torch's default weights) the plain network's gradient vanishes; with batch norm it does "
        "not, it grows. He et al. (section 4.1) find the same: vanishing gradients are not what makes "
        "the plain networks of claim 21 hard to train.",
        "command": "cnnkernels experiment gradients",
        "values": found,
    }


@claim(24, "Forward time and power of the networks", "charts")
def _():
    macs = {name: report(name).macs for name in ("alexnet", "vgg16", "googlenet", "resnet50")}
    return {
        "computed": "operations per image: "
        + ", ".join(f"{name} {value / 1e9:.2f} GMAC" for name, value in macs.items()),
        "status": "computed",
        "why": "Time, energy and memory against batch size are this machine's: run the command.",
        "command": "cnnkernels bench models alexnet vgg16 googlenet resnet50",
        "values": macs,
    }


# Top-1 accuracy in %, ImageNet validation set, one central crop: torchvision's IMAGENET1K_V1 weights
# (https://pytorch.org/vision/stable/models.html, table of classification weights).
TOP1 = {
    "alexnet": 56.522, "vgg11": 69.020, "vgg13": 69.928, "vgg16": 71.592, "vgg19": 72.376,
    "googlenet": 69.778, "resnet18": 69.758, "resnet34": 73.314, "resnet50": 76.130,
    "resnet101": 77.374, "resnet152": 78.312,
}  # fmt: skip


@claim(25, "Accuracy against operations, disc area for parameters", "chart")
def _():
    points = {}
    for name, top1 in TOP1.items():
        kwargs = {"aux_logits": False} if name == "googlenet" else {}
        table = report(name, "torchvision", **kwargs)
        points[name] = {"top1": top1, "gmac": table.macs / 1e9, "parameters": table.parameters}
    return {
        "computed": "; ".join(
            f"{name} {p['gmac']:.1f} GMAC, {p['parameters'] / 1e6:.0f}M → {p['top1']:.1f} %"
            for name, p in points.items()
        ),
        "status": "literature",
        "why": "Operations and parameters are computed; accuracies are torchvision's documented ones "
        "for its IMAGENET1K_V1 weights, one central crop.",
        "values": points,
    }


# Top-5 error in %.
ILSVRC = {
    "second of 2012 (Fisher vectors)": (26.2, "Krizhevsky et al. 2012, table 2"),
    "AlexNet, 2012": (15.3, "Krizhevsky et al. 2012, table 2: 7 networks, two of them pre-trained"),
    "Clarifai/ZF, 2013": (11.7, "Russakovsky et al. 2015, table 8"),
    "VGG, 2014": (7.3, "Simonyan & Zisserman 2014, table 7"),
    "GoogLeNet, 2014": (6.7, "Szegedy et al. 2014, table 2"),
    "ResNet, 2015": (3.57, "He et al. 2015, table 5"),
}
ILSVRC_2010 = {  # top-1, top-5: Krizhevsky et al. 2012, table 1
    "sparse coding": (47.1, 28.2),
    "SIFT + Fisher vectors": (45.7, 25.7),
    "CNN": (37.5, 17.0),
}


@claim(
    26,
    "ImageNet error rates",
    "26.2/15.3/11.7/7.3/6.7/3.57 %; 2010: 47.1/28.2, 45.7/25.7, 37.5/17.0",
)
def _():
    return {
        "computed": ", ".join(f"{name} {error} %" for name, (error, _) in ILSVRC.items())
        + "; 2010 test set, top-1/top-5: "
        + ", ".join(f"{name} {a}/{b} %" for name, (a, b) in ILSVRC_2010.items()),
        "status": "literature",
        "why": "Sources: " + "; ".join(dict.fromkeys(source for _, source in ILSVRC.values()))
        + "; 2010: Krizhevsky et al. 2012, table 1.",
        "values": {"ilsvrc": ILSVRC, "ilsvrc_2010": ILSVRC_2010},
    }  # fmt: skip


@claim(27, "AlexNet's recipe: ReLU, LRN, dropout 0.5, batch 128, augmentation, 7 networks", "–")
def _():
    net = models.alexnet(device="meta")
    kinds = [type(m).__name__ for m in net.modules()]
    drops = [m.p for m in net.modules() if isinstance(m, nn.Dropout)]
    found = {
        "lrn": sum("LRN" in kind or "LocalResponse" in kind for kind in kinds),
        "dropout": drops,
        "relu": report("alexnet").depth - 1,
    }
    return {
        "computed": f"the network has {found['lrn']} LRN layers, dropout {drops}, ReLU after every "
        "layer but the last",
        "status": "computed",
        "why": "Batch, augmentation, weight decay and the ensemble are options of training.",
        "command": "cnnkernels train alexnet",
        "values": found,
    }


@claim(28, "Learned filters of the first layer", "picture")
def _():
    shapes = {
        name: list(next(p for p in models.create(name, device="meta").parameters()).shape)
        for name in ("alexnet", "vgg16", "resnet50", "lenet5")
    }
    return {
        "computed": ", ".join(
            f"{name} {s[0]} filters {s[2]}×{s[3]}×{s[1]}" for name, s in shapes.items()
        ),
        "status": "computed",
        "why": "The picture takes trained weights.",
        "command": "cnnkernels experiment filters",
        "values": shapes,
    }
