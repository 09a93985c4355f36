"""Runs a list of cases: progress bar, JSON as it goes, tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import show
from .case import Case
from .measure import Settings, measure
from .peaks import Peaks
from .record import Record


def progress_bar() -> Progress:
    """On stderr, so that the tables on stdout can be piped; gone once done."""
    from rich.console import Console

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def measure_all(
    cases: Sequence[Callable[[], Case]],
    record: Record,
    settings: Settings,
    peaks: Peaks,
    title: str,
) -> None:
    """Measure every case into the record."""
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(cases))
        for make in cases:
            case = make()
            progress.update(task, description=f"{title}: {case.name}")
            record.add(measure(case, settings, peaks))
            progress.advance(task)
            if case.device.type == "cuda":
                torch.cuda.empty_cache()


def run_cases(
    cases: Sequence[Callable[[], Case]],
    suite: str,
    device: torch.device,
    settings: Settings,
    path: Path | None,
    only: str = "",
) -> Record:
    """Measure, save, print. Exits with 130 when interrupted, 1 when one of our outputs is wrong."""
    if not cases:
        raise ValueError(f"no case of {suite!r} contains {only!r}")
    peaks = Peaks(device)
    record = Record(path, device, settings)
    record.peaks = peaks
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    with record:
        try:
            measure_all(cases, record, settings, peaks, suite)
        finally:
            record.save()
            show.print_rows(record.rows, show.machine_line(record.content))
    finish(record)
    return record


def finish(record: Record) -> None:
    """Say where the JSON is; exit with 1 when one of ours was refused."""
    if record.path is not None:
        show.console.print(f"JSON: {record.path}", markup=False)
    refused = [r for r in record.rows if r["ours"] and r["status"] in ("wrong", "impossible")]
    # A backend that was forced may not take a shape; the automatic choice has to.
    refused += [r for r in record.rows if r["impl"] == "cnnkernels" and r["status"] == "failed"]
    if refused:
        raise SystemExit(1)
