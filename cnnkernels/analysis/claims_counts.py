"""Claims 1–17, 19 and 23: sizes, parameters, operations, depth, receptive field."""

from __future__ import annotations

from torch import nn

from .. import models
from .claims import agreement, claim, report
from .counts import sharing
from .receptive_field import stacked


def _status(*checks: bool) -> str:
    return "agrees" if all(checks) else "differs"


def _size(shape) -> str:
    """A row's (C, H, W) in the lecture's order H×W×C."""
    c, h, w = shape
    return f"{h}×{w}×{c}"


def _slide() -> object:
    """AlexNet in the order of the lecture's slide: conv, pool, norm."""
    return report("alexnet", order="pool_norm")


@claim(1, "AlexNet conv1 output for 227×227×3, 96 filters 11×11, stride 4", "55×55×96")
def _():
    out = report("alexnet")["features.conv1"].output
    rest = (224 - 11) % 4
    return {
        "computed": _size(out),
        "status": _status(_size(out) == "55×55×96"),
        "why": f"(227 − 11)/4 + 1 = {(227 - 11) // 4 + 1}. The paper's 224 without padding leaves a "
        f"remainder of {rest}: not a whole number of steps.",
        "values": {"output": list(out), "remainder_at_224": rest},
    }


@claim(2, "AlexNet conv1 parameters", "35K")
def _():
    row = report("alexnet")["features.conv1"]
    return {
        "computed": f"{row.weights:,} weights, {row.parameters:,} with biases",
        "status": _status(agreement(row.parameters, 35e3, 2)),
        "values": {"weights": row.weights, "parameters": row.parameters},
    }


@claim(3, "AlexNet pool1, 3×3 stride 2", "27×27×96, 0 parameters")
def _():
    row = _slide()["features.conv1.pool"]
    return {
        "computed": f"{_size(row.output)}, {row.parameters} parameters",
        "status": _status(_size(row.output) == "27×27×96", row.parameters == 0),
        "values": {"output": list(row.output), "parameters": row.parameters},
    }


@claim(4, "AlexNet parameters", "60M")
def _():
    counts = {
        "two_towers": report("alexnet").parameters,
        "one_tower": report("alexnet", towers=1).parameters,
        "torchvision": report("alexnet", "torchvision").parameters,
    }
    return {
        "computed": f"{counts['two_towers']:,} (two towers)",
        "status": _status(60e6 <= counts["two_towers"] < 61e6),
        "why": f"Depends on the form: as published in two towers; {counts['one_tower']:,} in one; "
        f"{counts['torchvision']:,} in torchvision's.",
        "values": counts,
    }


@claim(5, "LeNet-5 parameters", "60k")
def _():
    old, new = report("lenet5"), report("lenet5_modern")
    return {
        "computed": f"{old.parameters:,} trainable and {old.fixed} fixed (1998); "
        f"{new.parameters:,} as usual today",
        "status": _status(agreement(old.parameters, 60e3, 2)),
        "why": "1998: sparse C3 table, trainable sub-sampling, fixed RBF codes.",
        "values": {"trainable": old.parameters, "fixed": old.fixed, "modern": new.parameters},
    }


def _without(layers: tuple[int, ...], lecture: float):
    less = report("alexnet").parameters - report("alexnet", without=layers).parameters
    # The lecture rounds down, to a million (layer 7) and to ten millions.
    return less, f"−{less:,}", 0 <= less - lecture < 1.5e6


@claim(6, "AlexNet without layer 7: parameters", "−16M")
def _():
    less, text, near = _without((7,), 16e6)
    return {
        "computed": text,
        "status": _status(near),
        "why": "Layer 8 is re-wired to layer 6, of the same width; the lecture rounds down.",
        "values": {"fewer": less},
    }


@claim(7, "AlexNet without layers 3, 4, 6 and 7: parameters", "−50M")
def _():
    less, text, near = _without((3, 4, 6, 7), 50e6)
    return {
        "computed": text,
        "status": _status(near),
        "why": "conv5 is re-wired to conv2's 256 channels and layer 8 to the 9,216 pooled values; "
        "the lecture rounds down.",
        "values": {"fewer": less},
    }


@claim(8, "VGG16 activation memory, one image", "24M × 4 B ≈ 96 MB")
def _():
    vgg = report("vgg16")
    return {
        "computed": f"{vgg.activations:,} × {vgg.itemsize} B = {vgg.activation_bytes / 1e6:.2f} MB",
        "status": _status(agreement(vgg.activations, 24e6, 2)),
        "why": "The lecture's own rows add up to 15.2M: see claim 10.",
        "values": {"elements": vgg.activations, "bytes": vgg.activation_bytes},
    }


@claim(9, "VGG16 parameters", "138M")
def _():
    vgg = report("vgg16")
    return {
        "computed": f"{vgg.weights:,} without biases, {vgg.parameters:,} with",
        "status": _status(agreement(vgg.weights, 138e6, 3)),
        "values": {"weights": vgg.weights, "parameters": vgg.parameters},
    }


# The lecture's rows: outputs as printed (two digits at most), weights exact.
VGG_ROWS = (
    (3.2e6, 1_728), (3.2e6, 36_864), (800e3, 0), (1.6e6, 73_728), (1.6e6, 147_456), (400e3, 0),
    (800e3, 294_912), (800e3, 589_824), (800e3, 589_824), (200e3, 0), (400e3, 1_179_648),
    (400e3, 2_359_296), (400e3, 2_359_296), (100e3, 0), (100e3, 2_359_296), (100e3, 2_359_296),
    (100e3, 2_359_296), (25e3, 0), (4096, 102_760_448), (4096, 16_777_216), (1000, 4_096_000),
)  # fmt: skip


@claim(10, "VGG16, memory and parameters of each layer", f"{len(VGG_ROWS)} rows and the input")
def _():
    rows = report("vgg16").rows
    matches = [
        abs(row.elements - elements) < 0.006 * elements and row.weights == weights
        for row, (elements, weights) in zip(rows, VGG_ROWS)
    ]
    return {
        "computed": f"{sum(matches)} of {len(rows)} rows agree",
        "status": _status(len(rows) == len(VGG_ROWS), *matches),
        "why": "Printed rounded: 802,816 as 800K, 25,088 as 25K. The rows are right, their sum "
        "(claim 8) is not.",
        "command": "cnnkernels inspect vgg16",
        "values": {"rows": [[row.name, row.elements, row.weights] for row in rows]},
    }


@claim(
    11, "Three stacked 3×3 layers see as much as one 7×7, with fewer weights", "7×7; 27C² vs 49C²"
)
def _():
    side, c = stacked((3, 3, 3)), 64
    with_three = 3 * nn.Conv2d(c, c, 3, bias=False, device="meta").weight.numel()
    with_one = nn.Conv2d(c, c, 7, bias=False, device="meta").weight.numel()
    a, b = with_three // c**2, with_one // c**2
    return {
        "computed": f"{side}×{side}; {a}C² vs {b}C²",
        "status": _status(side == 7, a == 27, b == 49),
        "values": {"field": side, "three": a, "one": b},
    }


@claim(12, "Naïve inception on 28×28×256 (1×1 128, 3×3 192, 5×5 96, pool): output", "28×28×672")
def _():
    out = report("inception_naive").rows[-1].output
    small = report("inception_bottleneck").rows[-1].output
    return {
        "computed": _size(out),
        "status": _status(_size(out) == "28×28×672"),
        "why": f"With bottlenecks: {_size(small)}.",
        "values": {"naive": list(out), "bottleneck": list(small)},
    }


@claim(13, "Naïve inception: operations", "854M ops")
def _():
    macs = report("inception_naive").macs
    return {
        "computed": f"{macs:,} multiply-accumulates",
        "status": _status(agreement(macs, 854e6, 3)),
        "why": f"“Ops” there means multiply-accumulates; in FLOPs it is {2 * macs:,}.",
        "values": {"macs": macs, "flops": 2 * macs},
    }


@claim(14, "Inception with bottlenecks: operations", "353M ops")
def _():
    table = report("inception_bottleneck")
    with_again = table.macs + table["branch2.1"].macs
    return {
        "computed": f"{table.macs:,} multiply-accumulates",
        "status": _status(agreement(table.macs, 353e6, 3)),
        "why": f"With the 3×3 row counted twice it would be {with_again:,} (358M); the slide's figure "
        "has that mistake and a misprint on top.",
        "values": {"macs": table.macs, "with_3x3_twice": with_again},
    }


@claim(15, "GoogLeNet parameters", "5M, 12× fewer than AlexNet, no FC layers")
def _():
    net, alex = report("googlenet", aux_logits=False), report("alexnet").parameters
    heads = report("googlenet").parameters
    bare = net.parameters - net["fc"].parameters
    return {
        "computed": f"{net.parameters:,} with its one FC layer ({bare:,} without); "
        f"{alex / net.parameters:.1f}× fewer",
        "status": _status(agreement(net.parameters, 5e6, 1), round(alex / net.parameters) == 12),
        "why": f"The last layer is fully connected. 12× is the paper's figure against 5M. With both "
        f"auxiliary classifiers, used in training only: {heads:,}.",
        "values": {
            "parameters": net.parameters, "without_fc": bare, "with_heads": heads,
            "times_fewer": alex / net.parameters,
        },
    }  # fmt: skip


@claim(
    16, "Depth in layers with weights", "AlexNet 8, VGG 16–19, GoogLeNet 22, ResNet 34/50/101/152"
)
def _():
    lecture = {
        "alexnet": 8, "vgg16": 16, "vgg19": 19, "googlenet": 22, "resnet34": 34, "resnet50": 50,
        "resnet101": 101, "resnet152": 152,
    }  # fmt: skip
    ours = {name: report(name).depth for name in lecture}
    return {
        "computed": ", ".join(f"{name} {depth}" for name, depth in ours.items()),
        "status": _status(ours == lecture),
        "why": "Counted as the longest path through convolutions and linear layers.",
        "values": ours,
    }


@claim(17, "Every residual block has two 3×3 layers", "two 3×3")
def _():
    kernels = {}
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        net = models.create(name, device="meta")
        blocks = {
            tuple(m.kernel_size[0] for n, m in block.named_children() if n.startswith("conv"))
            for stage in (net.layer1, net.layer2, net.layer3, net.layer4)
            for block in stage
        }
        kernels[name] = sorted(blocks)
    two = [name for name, blocks in kernels.items() if blocks == [(3, 3)]]
    other = [name for name in kernels if name not in two]
    return {
        "computed": f"true of {', '.join(two)}; not of {', '.join(other)}",
        "status": _status(not other),
        "why": "The deeper ones use bottlenecks: "
        + "; ".join(f"{n} {'–'.join(f'{k}×{k}' for k in kernels[n][0])}" for n in other),
        "values": {name: [list(b) for b in blocks] for name, blocks in kernels.items()},
    }


@claim(19, "Weight sharing cuts parameters (AlexNet conv1)", "–")
def _():
    found = sharing(models.alexnet(device="meta").features.conv1, (3, 227, 227))
    return {
        "computed": f"{found.shared:,} shared; {found.unshared:,} local but unshared; "
        f"{found.dense:,} dense",
        "status": "computed",
        "values": dict(found.__dict__),
    }


@claim(23, "Receptive fields", "–")
def _():
    places = {
        "LeNet-5 S4": report("lenet5")["features.s4"],
        "AlexNet pool5": report("alexnet")["features.conv5.pool"],
        "VGG16 pool5": report("vgg16").rows[-4],
        "ResNet-18": report("resnet18")["layer4.1.add_relu"],
    }
    sides = {name: row.receptive_field[0] for name, row in places.items()}
    return {
        "computed": ", ".join(f"{name} {side}" for name, side in sides.items()),
        "status": "computed",
        "why": "In input pixels, as if the picture had no edge.",
        "command": "cnnkernels inspect resnet18",
        "values": sides,
    }
