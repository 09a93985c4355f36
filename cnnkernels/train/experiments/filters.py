"""The first layer's filters as pictures: what a net has learned to look for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import models
from ..checkpoint import load as load_checkpoint
from ..engine import Run
from ..log import figure_of
from ..recipe import Recipe, default_recipe
from .ablation import he_init
from .common import Setting, cut_test


def first_convolution(model: nn.Module) -> nn.Conv2d:
    """The convolution that sees the image."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            return layer
    raise ValueError(f"{type(model).__name__} has no convolution")


def _from_file(weights: Path, model: str | None) -> tuple[str, Tensor]:
    """First-layer weights of a run's folder, its model.pt, or a state_dict for ``model``."""
    path = weights / "model.pt" if weights.is_dir() else weights
    if model is None:
        state = load_checkpoint(path)
        recipe = Recipe.from_dict(state["recipe"])
        net = models.create(recipe.model, recipe.variant, **_arguments(recipe, state["model"]))
        net.load_state_dict(state["model"])
        return f"{recipe.model}, {state['accuracy']:.2f} % on {recipe.data}", first_convolution(
            net
        ).weight
    if not path.is_file():
        raise FileNotFoundError(f"weights is {str(weights)!r}, which does not exist")
    state = torch.load(path, map_location="cpu", weights_only=True)
    variant = "torchvision" if model in models.list_models("torchvision") else None
    net = models.create(model, variant)
    net.load_state_dict(state)
    return f"{model}, {path.name}", first_convolution(net).weight


def _arguments(recipe: Recipe, state: dict) -> dict:
    """The constructor's arguments of a trained net: its classes and channels are in its weights."""
    arguments = dict(recipe.model_args)
    if recipe.model != "lenet5":
        arguments["num_classes"] = list(state.values())[-1].shape[0]
    if recipe.model.endswith("_cifar") or recipe.model == "lenet5_modern":
        arguments["in_channels"] = next(iter(state.values())).shape[1]
    return arguments


def tiles(weights: Tensor) -> Tensor:
    """[N, C, k, k] filters as pictures in 0…1, each stretched to its own range: [N, k, k, 3]."""
    weights = weights.detach().float().cpu()
    if weights.shape[1] != 3:
        weights = weights.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = weights.amin((1, 2, 3), keepdim=True), weights.amax((1, 2, 3), keepdim=True)
    return ((weights - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1)


def filters(setting: Setting, weights: Path | None = None, model: str | None = None) -> dict:
    """Draw the first-layer filters of a trained net.

    Args:
        weights: a folder that ``cnnkernels train`` has written, its ``model.pt``, or a file with a
            state_dict for ``model`` (torchvision's variant where there is one). Without it, an
            AlexNet of half the width is trained here on 67×67 images (quick: 4,000, 3 epochs).
        model: the net that a state_dict is for.
    """
    if weights is not None:
        title, learned = _from_file(Path(weights), model)
    else:
        data = cut_test(setting.load("fashion-mnist", 67), setting.test_limit or 1000)
        recipe = default_recipe(
            "alexnet", data.name, model_args={"side": 67, "width": 0.5}, dropout=0.0, batch=64,
            epochs=setting.epochs or (20 if setting.full else 3), fit="resize",
            limit=setting.limit or (None if setting.full else 4000), optimizer="adamw", lr=1e-3,
            weight_decay=0.0, schedule="cosine", warmup=0.5, augment=("flip",),
        )  # fmt: skip
        run = Run(replace(recipe, seed=setting.seed), data, setting.place)
        he_init(run.model)
        # Small at first, or the picture would show the initial weights' noise.
        nn.init.normal_(first_convolution(run.model).weight, std=0.005)
        result = run.run()
        learned = first_convolution(run.model).weight
        if data.channels == 1:  # three equal channels: only their sum has an effect
            learned = learned.sum(1, keepdim=True)
        title = f"alexnet (half width), {result.accuracy:.2f} % on {data.name}"
    setting.say(f"{title}: {len(learned)} filters of {list(learned.shape[1:])}")
    pictures = tiles(learned)
    columns = math.ceil(math.sqrt(2 * len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    figure = figure_of(0.6 * columns, 0.6 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for ax in panels:
        ax.axis("off")
    for ax, picture in zip(figure.axes, pictures):
        ax.imshow(picture.numpy(), interpolation="nearest")
    figure.suptitle(f"first layer of {title}", fontsize=9)
    result = {"net": title, "filters": len(learned), "shape": list(learned.shape)}
    return setting.write("filters", result, figure)
