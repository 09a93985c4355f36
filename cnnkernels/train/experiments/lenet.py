"""LeNet-5 on digits: the net of 1998 and its usual rewrite, trained and shown at work."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...data import Images
from ..engine import Run
from ..log import figure_of
from ..recipe import default_recipe
from .common import Setting


def lenet(setting: Setting) -> dict:
    """Train both forms of LeNet-5 on the digits; draw test digits, the wrong answers first."""
    data = setting.load("digits")
    if not isinstance(data.test, Images):
        raise ValueError(f"data is {setting.data!r}; lenet takes digits or fashion-mnist")
    figure = figure_of(9, 5)
    panels = figure.subplots(4, 10).reshape(2, 20)
    nets = {}
    for name, axes in zip(("lenet5", "lenet5_modern"), panels):
        extra = {"epochs": setting.epochs, "limit": setting.limit}
        recipe = replace(default_recipe(name, data.name, **extra), seed=setting.seed)
        result = (run := Run(recipe, data, setting.place)).run()
        setting.say(f"{name}: test accuracy {result.accuracy:.2f} %")
        parameters = sum(p.numel() for p in run.model.parameters())
        nets[name] = {
            "accuracy": result.accuracy, "parameters": parameters, "epochs": recipe.epochs,
            "seconds": run.seconds,
        }  # fmt: skip
        answers = result.probabilities.argmax(1).cpu()
        labels = data.test.labels
        order = torch.argsort((answers == labels).int(), stable=True)[: len(axes)]
        for ax, i in zip(axes, order.tolist()):
            ax.imshow(data.test.images[i, 0].numpy(), cmap="gray_r")
            right = answers[i] == labels[i]
            label = data.classes[answers[i]] if right else (
                f"{data.classes[answers[i]]}, is {data.classes[labels[i]]}"
            )  # fmt: skip
            ax.set_title(label, fontsize=6, color="black" if right else "red")
            ax.axis("off")
    figure.suptitle("  ·  ".join(f"{n}: {v['accuracy']:.2f} %" for n, v in nets.items()))
    return setting.write("lenet", {"data": str(data), "nets": nets}, figure)
