"""A training run from its folder's point of view: start or take up, ensembles, signals, progress."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import models
from ..data import ImageData
from . import checkpoint
from .distributed import Place
from .engine import Result, Run, Stopped
from .recipe import Recipe

SETTINGS = "recipe.json"
WEIGHTS = "model.pt"


@dataclass(frozen=True)
class Settings:
    """What recipe.json holds: all that --resume needs."""

    recipe: Recipe
    ensemble: int = 1
    data_dir: str | None = None


def fresh_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or the first of ``name-2``, ``name-3``, … that is not there yet."""
    folder, n = parent / name, 1
    while folder.exists():
        n += 1
        folder = parent / f"{name}-{n}"
    return folder


def check_unused(folder: Path) -> None:
    """ValueError when the folder already holds a run."""
    if (folder / SETTINGS).exists():
        raise ValueError(
            f"out is {str(folder)!r}, which already holds a run; go on with it by "
            f"--resume {folder}, or choose another folder"
        )


def write_settings(folder: Path, settings: Settings) -> None:
    """Start a run's folder."""
    check_unused(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "recipe": settings.recipe.to_dict(),
        "ensemble": settings.ensemble,
        "data_dir": settings.data_dir,
    }
    text = json.dumps(content, indent=2) + "\n"
    checkpoint.write_atomically(folder / SETTINGS, lambda path: path.write_text(text))


def read_settings(folder: Path) -> Settings:
    """The settings of a run's folder; errors name what is missing or damaged."""
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"resume is {str(folder)!r}, which holds no run (no {SETTINGS})")
    try:
        content = json.loads(path.read_text())
        return Settings(
            Recipe.from_dict(content["recipe"]), content["ensemble"], content["data_dir"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a run's settings: {error}") from error


def input_side(recipe: Recipe) -> int:
    """The side of the images that the recipe's model takes; the model is made without memory."""
    return models.create(
        recipe.model, recipe.variant, device="meta", **recipe.model_args
    ).input_size[-1]


@contextlib.contextmanager
def stopping(run: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the current step; a second one ends it at once."""

    def handle(number, frame):
        if run.stop:
            raise KeyboardInterrupt
        run.stop = True

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs the thread handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(console: Console | None, run: Run, title: str) -> Iterator[None]:
    """A bar on a terminal, and one line per epoch everywhere."""
    if console is None:
        yield
        return
    steps, printed = run.batches.steps, len(run.history)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task(title, total=run.recipe.epochs * steps, completed=run.done_steps)
    shown = time.perf_counter()

    def lines() -> None:
        nonlocal printed
        for row in run.history[printed:]:
            console.print(
                f"{title} epoch {row['epoch']:>3}/{run.recipe.epochs}  "
                f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2f} %  "
                f"{run.recipe.tested} loss {row['test_loss']:.4f}, accuracy {row['test_accuracy']:.2f} %  "
                f"{row['seconds']:.1f} s",
                highlight=False,
            )
        printed = len(run.history)

    def report(epoch: int, step: int, loss: torch.Tensor) -> None:
        nonlocal shown
        lines()
        if time.perf_counter() - shown > 0.2:  # reading a loss waits for the GPU: not every step
            shown = time.perf_counter()
            what = f"{title} epoch {epoch + 1}/{run.recipe.epochs} loss {float(loss):.3f}"
            bar.update(task, completed=epoch * steps + step, description=what)

    run.report = report
    with bar:
        yield
    lines()


def _finish(folder: Path, settings: Settings, result: Result, recipe: Recipe) -> None:
    """The weights by themselves (averaged where there is an average), for other programs."""
    state = {
        "recipe": recipe.to_dict(),
        "model": result.model.state_dict(),
        "accuracy": result.accuracy,
    }
    checkpoint.save(folder / WEIGHTS, state)


def run_all(
    settings: Settings,
    data: ImageData,
    place: Place,
    folder: Path,
    console: Console | None = None,
    **options,
) -> list[Result]:
    """Train every net of the ensemble, from its checkpoint where it has one.

    Net i of k has the recipe's seed plus i, and the sub-folder ``net<i>`` when k > 1. ``options``
    go to :class:`Run`. Stopped passes through, with everything written.
    """
    results = []
    for i in range(settings.ensemble):
        recipe = replace(settings.recipe, seed=settings.recipe.seed + i)
        own = folder / f"net{i}" if settings.ensemble > 1 else folder
        run = Run(recipe, data, place, own, **options)
        if place.first:  # only now: settings that can't work leave no folder behind
            if not (folder / SETTINGS).exists():
                write_settings(folder, settings)
            own.mkdir(parents=True, exist_ok=True)
        place.wait()
        if (own / checkpoint.NAME).exists():
            run.load_state(checkpoint.load(own / checkpoint.NAME, place.device))
        title = (
            recipe.model
            if settings.ensemble == 1
            else f"{recipe.model} {i + 1}/{settings.ensemble}"
        )
        shown = console if place.first else None
        with stopping(run), progress(shown, run, title):
            result = run.run()
        if place.first:
            _finish(own, settings, result, recipe)
        results.append(result)
    return results


def ensemble_accuracy(results: list[Result], place: Place) -> float:
    """Per cent right when the nets' probabilities are averaged."""
    mean = torch.stack([result.probabilities for result in results]).mean(0)
    labels = results[0].labels
    right, n = place.total(float((mean.argmax(1) == labels).sum()), len(labels))
    return 100 * right / n


__all__ = [
    "Settings",
    "Stopped",
    "check_unused",
    "ensemble_accuracy",
    "fresh_folder",
    "input_side",
    "read_settings",
    "run_all",
    "write_settings",
]
