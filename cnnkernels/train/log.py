"""The log of a run: a CSV file always, TensorBoard where it is installed, and curves as a picture."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

from .checkpoint import write_atomically

COLUMNS = (
    "epoch", "steps", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
)  # fmt: skip


def write(folder: Path, history: list[dict], title: str, tested: str = "test") -> None:
    """``log.csv`` and ``curves.png``, from the whole history: a resumed run leaves no double rows."""

    def rows(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(history)

    write_atomically(folder / "log.csv", rows)
    figure = figure_of()
    losses, errors = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for kind, style, label in (("train", "--", "train"), ("test", "-", tested)):
        losses.plot(epochs, [row[f"{kind}_loss"] for row in history], style, label=label)
        wrong = [100 - row[f"{kind}_accuracy"] for row in history]
        errors.plot(epochs, wrong, style, label=label)
    losses.set(xlabel="epoch", ylabel="loss", title=title)
    errors.set(xlabel="epoch", ylabel="error, %", ylim=(0, None))
    errors.set_title(f"{tested} accuracy {history[-1]['test_accuracy']:.2f} %")
    for axes in (losses, errors):
        axes.legend()
        axes.grid(alpha=0.3)
    save_figure(figure, folder / "curves.png")


def figure_of(width: float = 9, height: float = 3.6):
    """A matplotlib figure that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: Path) -> None:
    """Write a PNG in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def open_board(folder: Path | None, step: int):
    """A TensorBoard writer, or None where TensorBoard is absent or nothing is written."""
    if folder is None or find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    # What a killed run had written past its last checkpoint is struck out.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)


def to_board(board, row: dict) -> None:
    for name in COLUMNS[2:7]:
        board.add_scalar(name.replace("_", "/"), row[name], row["steps"])
    board.flush()
