"""Deeper plain nets get worse, deeper residual nets don't: He et al. 2015, figures 1 and 6."""

from __future__ import annotations

from dataclasses import replace

from ..log import figure_of
from ..recipe import default_recipe
from .common import Setting, cut_test, train_curve


def depth(setting: Setting, depths: tuple[int, ...] = (20, 56)) -> dict:
    """Train plain and residual nets of each depth and draw their training and test errors.

    Quick: Fashion-MNIST pooled to 14×14, 12,000 images, width 8, 2 epochs. Full: the published nets
    (width 16, 32×32) and recipe, on CIFAR-10 unless the setting names other data.
    """
    if setting.full:
        data = setting.load("cifar10")
        extra = {"epochs": setting.epochs, "limit": setting.limit}
        points = setting.epochs or 164
    else:
        data = cut_test(setting.load("fashion-mnist"), setting.test_limit or 2000)
        extra = {
            "epochs": setting.epochs or 2, "limit": setting.limit or 12_000, "batch": 64,
            "image_size": 14, "model_args": {"width": 8}, "augment": (), "schedule": "cosine",
            "warmup": 0.25,
        }  # fmt: skip
        points = 8
    figure = figure_of()
    panels = dict(zip(("plain", "resnet"), figure.subplots(1, 2, sharey=True)))
    nets = {}
    for kind, axes in panels.items():
        for i, layers in enumerate(depths):
            recipe = default_recipe(f"{kind}{layers}_cifar", data.name, **extra)
            recipe = replace(recipe, seed=setting.seed)
            run, rows = train_curve(recipe, data, setting.place, points, setting.say)
            parameters = sum(p.numel() for p in run.model.parameters())
            nets[recipe.model] = {
                "depth": layers,
                "parameters": parameters,
                "train_error": rows[-1]["train_error"],
                "test_error": rows[-1]["test_error"],
                "seconds": run.seconds,
                "curve": rows,
            }
            epochs, colour = [row["epoch"] for row in rows], f"C{i}"
            axes.plot(epochs, [row["train_error"] for row in rows], "--", color=colour, lw=1)
            test = [row["test_error"] for row in rows]
            axes.plot(epochs, test, color=colour, lw=2, label=f"{layers} layers")
        axes.set(title=f"{kind} nets", xlabel="epoch", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(title="— test   - - training")
    panels["plain"].set_ylabel("error, %")
    deep, shallow = max(depths), min(depths)
    worse = {
        kind: nets[f"{kind}{deep}_cifar"]["test_error"]
        - nets[f"{kind}{shallow}_cifar"]["test_error"]
        for kind in panels
    }
    return setting.write(
        "depth", {"data": str(data), "nets": nets, "deeper_is_worse_by": worse}, figure
    )
