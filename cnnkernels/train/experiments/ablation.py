"""AlexNet without some of its layers: what they cost and what they bring (Zeiler & Fergus 2013)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ... import models
from ..engine import Run
from ..log import figure_of
from ..recipe import default_recipe
from .common import Setting, cut_test

VARIANTS = {
    "all layers": (),
    "without 7": (7,),
    "without 6, 7": (6, 7),
    "without 3, 4": (3, 4),
    "without 3, 4, 6, 7": (3, 4, 6, 7),
}


def he_init(model: nn.Module) -> None:
    """The published N(0, 0.01²) suits 90 epochs of ImageNet: in a short run nothing would move."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def full_parameters(without: tuple[int, ...]) -> int:
    """Parameters of the published net for 1,000 classes; nothing is allocated."""
    model = models.alexnet(without=without, device="meta")
    return sum(p.numel() for p in model.parameters())


def ablation(setting: Setting) -> dict:
    """Train AlexNet with and without layers 7; 6, 7; 3, 4; 3, 4, 6, 7: parameters and accuracy.

    Parameters are those of the published net. Accuracy, quick: a quarter of the width on 67×67
    Fashion-MNIST, 4,000 images, He's initial weights, no dropout; full: the published net on the
    setting's data (an ImageFolder; Fashion-MNIST if none is named).
    """
    data = setting.load("fashion-mnist", 227)
    full = full_parameters(())
    rows = {}
    for label, without in VARIANTS.items():
        parameters = full_parameters(without)
        arguments = {"without": without}
        if setting.full:
            extra = {"model_args": arguments, "epochs": setting.epochs, "limit": setting.limit}
        else:
            extra = {
                "model_args": {**arguments, "side": 67, "width": 0.25}, "dropout": 0.0,
                "epochs": setting.epochs or 3, "limit": setting.limit or 4000, "batch": 64,
                "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "schedule": "cosine",
                "warmup": 0.5, "augment": (), "fit": "resize",
            }  # fmt: skip
            if {6, 7} <= set(without):
                extra["dropout"] = None  # there is no dropout layer to set
        recipe = replace(default_recipe("alexnet", data.name, **extra), seed=setting.seed)
        small = cut_test(data, setting.test_limit or (None if setting.full else 2000))
        run = Run(recipe, small, setting.place)
        if not setting.full:
            he_init(run.model)
        result = run.run()
        rows[label] = {
            "parameters": parameters,
            "parameters_saved": full - parameters,
            "parameters_trained": sum(p.numel() for p in run.model.parameters()),
            "accuracy": result.accuracy,
            "seconds": run.seconds,
        }
        setting.say(
            f"{label}: {parameters:,} parameters ({parameters - full:+,}), "
            f"test accuracy {result.accuracy:.1f} %"
        )
    figure = figure_of(9, 3.6)
    names = list(rows)
    left, right = figure.subplots(1, 2, sharey=True)
    bars = left.barh(names, [row["parameters"] / 1e6 for row in rows.values()], color="C0")
    left.bar_label(bars, fmt="%.1f")
    left.set(xlabel="parameters of the published net, millions", xlim=(0, 1.15 * full / 1e6))
    bars = right.barh(names, [row["accuracy"] for row in rows.values()], color="C1")
    right.bar_label(bars, fmt="%.1f")
    right.set(xlabel="test accuracy here, %", xlim=(0, 115))
    left.invert_yaxis()
    return setting.write("ablation", {"data": str(data), "variants": rows}, figure)
