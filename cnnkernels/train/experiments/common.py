"""What the experiments share: their setting, training with a finer curve, results as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ... import data as data_module
from ...data import ImageData, Images
from ..batches import spaced
from ..checkpoint import write_atomically
from ..distributed import Place
from ..engine import Run
from ..log import save_figure
from ..recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """Where and how an experiment runs; None stands for the experiment's own choice."""

    out: Path
    place: Place = field(default_factory=lambda: Place(0, 1, torch.device("cpu")))
    data: str | None = None
    data_dir: str | None = None
    download: bool = True
    full: bool = False
    seed: int = 0
    epochs: int | None = None
    limit: int | None = None  # training images
    test_limit: int | None = None
    say: Callable[[str], None] = lambda line: None

    def load(self, default: str, size: int = 224) -> ImageData:
        """The data set, its test split cut to ``test_limit``."""
        data = data_module.load(self.data or default, self.data_dir, size, download=self.download)
        self.say(str(data))
        return cut_test(data, self.test_limit)

    def write(self, name: str, result: dict, figure) -> dict:
        """Write the picture and the numbers; the result with the picture's path."""
        self.out.mkdir(parents=True, exist_ok=True)
        save_figure(figure, self.out / f"{name}.png")
        result = {**result, "picture": str(self.out / f"{name}.png")}
        text = json.dumps(result, indent=2) + "\n"
        write_atomically(self.out / f"{name}.json", lambda path: path.write_text(text))
        return result


def cut_test(data: ImageData, n: int | None) -> ImageData:
    """n of the test images, evenly spaced (all of them in a split of files)."""
    if n is None or not isinstance(data.test, Images):
        return data
    chosen = spaced(len(data.test.labels), n)
    return replace(data, test=Images(data.test.images[chosen], data.test.labels[chosen]))


def train_curve(
    recipe: Recipe, data: ImageData, place: Place, points: int, say: Callable[[str], None]
) -> tuple[Run, list[dict]]:
    """Train by ``recipe`` and measure ``points`` times at equal distances.

    Returns the finished run and rows of ``step``, ``epoch`` (a fraction), ``train_error`` (per cent
    of the images since the last point, as they were trained on) and ``test_error``.
    """
    run = Run(recipe, data, place)
    total = recipe.epochs * run.batches.steps
    marks = {max(1, round(total * (i + 1) / points)) for i in range(points)}
    rows, since = [], {"sums": run.sums.clone(), "epoch": 0}

    def report(epoch: int, step: int, loss: torch.Tensor) -> None:
        done = epoch * run.batches.steps + step
        if since["epoch"] != epoch:  # the run counts from zero in every epoch
            since.update(sums=torch.zeros_like(run.sums), epoch=epoch)
        if done not in marks:
            return
        _, right, images = (run.sums - since["sums"]).tolist()
        since["sums"] = run.sums.clone()
        test = run.evaluate()
        rows.append({
            "step": done,
            "epoch": done / run.batches.steps,
            "train_error": 100 * (1 - right / images),
            "test_error": 100 - test.accuracy,
        })  # fmt: skip
        say(
            f"{recipe.model}: step {done}/{total}, training error {rows[-1]['train_error']:.1f} %, "
            f"test error {rows[-1]['test_error']:.1f} %"
        )

    run.report = report
    run.run()
    return run, rows
