"""The charts of a benchmark: SVG that follows the page's colours, and the same as PNG files."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")  # no display is needed; PNG is written by its own canvas

import matplotlib.pyplot as plt

from . import literature

# Text and axes get this colour; in the page's SVG it becomes currentColor, light or dark.
INK = "#767679"
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "cnnkernels",  # the same data give the same file
}
MARKERS = "osD^vP*Xd<>hp8"


def _ours(content: dict) -> list[dict]:
    return [
        row
        for row in content["rows"]
        if row["suite"] == "models" and row["impl"] == "cnnkernels" and row["status"] == "ok"
    ]


def _label(row: dict) -> str:
    plain = row["variant"] == "paper" or not row["variant"]
    return row["model"] if plain else f"{row['model']} ({row['variant']})"


# Per row: the number, or None where it was not measured.
QUANTITIES: dict[str, Callable[[dict], float | None]] = {
    "time per image (ms)": lambda row: row["cold"]["median_us"] / 1e3 / row["batch"],
    "power (W)": lambda row: (row.get("energy") or {}).get("watts"),
    "energy per image (J)": lambda row: (row.get("energy") or {}).get("joules_per_image"),
    "peak memory (MiB)": lambda row: (
        row["peak_bytes"] / 2**20 if row.get("peak_bytes") is not None else None
    ),
}


def _against_batch(content: dict):
    """Four panels over batch size: time, power, energy, memory. One line per network and precision."""
    lines = defaultdict(list)
    for row in _ours(content):
        lines[_label(row), row["dtype"]].append(row)
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), constrained_layout=True)
    precisions = {dtype for _, dtype in lines}
    for axis, (title, value) in zip(axes.flat, QUANTITIES.items()):
        drawn = False
        for i, ((name, dtype), rows) in enumerate(sorted(lines.items())):
            points = sorted((row["batch"], value(row)) for row in rows if value(row) is not None)
            if points:
                label = name if len(precisions) == 1 else f"{name} {dtype}"
                axis.plot(*zip(*points), marker=MARKERS[i % len(MARKERS)], ms=4, lw=1, label=label)
                drawn = True
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("batch size")
        if drawn:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter("{x:.0f}")
        else:
            axis.text(0.5, 0.5, "n/a: not measured on this machine", ha="center", va="center",
                      transform=axis.transAxes)  # fmt: skip
    axes.flat[0].legend(fontsize=7, ncols=2)
    return figure


def _time_against_operations(content: dict):
    """Each network's time per image at its largest batch, against its operations; the floor below."""
    best: dict[str, dict] = {}
    for row in _ours(content):
        name = f"{_label(row)} {row['dtype']}"
        if name not in best or row["batch"] > best[name]["batch"]:
            best[name] = row
    figure, axis = plt.subplots(figsize=(9, 4.2), constrained_layout=True)
    for i, (name, row) in enumerate(sorted(best.items())):
        x = row["flops"] / row["batch"] / 1e9
        y = row["cold"]["median_us"] / 1e3 / row["batch"]
        label = f"{name}, batch {row['batch']}"
        axis.plot(x, y, marker=MARKERS[i % len(MARKERS)], ls="none", label=label)
    if best:
        span = [row["flops"] / row["batch"] / 1e9 for row in best.values()]
        ends = [min(span) / 1.5, max(span) * 1.5]
        for dtype in sorted({row["dtype"] for row in best.values()}):
            rate = content["peaks"].get("matmul_tflops", {}).get(dtype)
            if rate:
                axis.plot(ends, [e / rate for e in ends], ls="--", lw=1, color=INK)
                axis.annotate(f"{rate:.3g} TFLOP/s, {dtype}: measured limit", (ends[0], ends[0] / rate),
                              fontsize=7)  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.legend(fontsize=7, loc="upper left")
    axis.set_xlabel("operations per image (GFLOP, 2 per multiply-accumulate)")
    axis.set_ylabel("time per image (ms)")
    return figure


def _accuracy_against_operations(sizes: dict[tuple[str, str], tuple[int, int]]):
    """Published top-1 accuracies against computed operations; a disc's area is the parameters."""
    figure, axis = plt.subplots(figsize=(9, 4.8), constrained_layout=True)
    for i, entry in enumerate(literature.ACCURACIES):
        if (entry.model, entry.variant) not in sizes:
            continue
        flops, parameters = sizes[entry.model, entry.variant]
        axis.scatter(
            flops / 1e9, entry.top1, s=parameters / 1e6 * 6, alpha=0.45, color=f"C{i % 10}"
        )
        above = i % 2 == 0  # neighbours in the list are neighbours in the chart
        axis.annotate(
            entry.model,
            (flops / 1e9, entry.top1),
            (0, 9 if above else -9),
            textcoords="offset points",
            fontsize=7,
            ha="center",
            va="bottom" if above else "top",
        )
    for millions in (10, 50, 140):
        axis.scatter(
            [], [], s=millions * 6, color=INK, alpha=0.45, label=f"{millions} M parameters"
        )
    axis.legend(loc="lower right", labelspacing=1.6, borderpad=1.2)
    axis.set_xlabel("operations per image (GFLOP, computed from the networks here)")
    axis.set_ylabel("top-1 accuracy (%), from the literature")
    return figure


def network_sizes() -> dict[tuple[str, str], tuple[int, int]]:
    """(model, variant) → (operations of one image, parameters) of the networks in the literature."""
    from .. import models
    from .networks import flops_of
    from .rivals import eager_twin

    sizes = {}
    for entry in literature.ACCURACIES:
        model = models.create(entry.model, entry.variant, device="meta").eval()
        parameters = sum(
            p.numel() for name, p in model.named_parameters() if not name.startswith("aux")
        )
        sizes[entry.model, entry.variant] = flops_of(eager_twin(model)), parameters
    return sizes


TITLES = {
    "batch": "Time, power, energy and memory against batch size",
    "operations": "Time against operations",
    "accuracy": "Accuracy against operations (literature accuracies, not measured here)",
}


def draw(content: dict) -> dict[str, plt.Figure]:
    """Name → figure; the caller closes them."""
    with plt.rc_context(STYLE):
        figures = {}
        if _ours(content):
            figures["batch"] = _against_batch(content)
            figures["operations"] = _time_against_operations(content)
        figures["accuracy"] = _accuracy_against_operations(network_sizes())
        return figures


def inline_svg(figure: plt.Figure, name: str) -> str:
    """The figure as an <svg> element whose ink is the page's text colour. Its ids start with ``name``,
    so that several fit on one page."""
    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"<svg [^>]*?viewBox", '<svg role="img" viewBox', text, count=1)


def save_files(figures: dict[str, plt.Figure], folder: Path) -> list[Path]:
    """Each figure as SVG and PNG (on white) in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        for kind in ("svg", "png"):
            path = folder / f"{name}.{kind}"
            with plt.rc_context(STYLE):
                figure.savefig(path, dpi=150, facecolor="white")
            written.append(path)
    return written
