"""Runs a list of cases: progress bar, time limit, JSON as it goes, tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import show
from .budget import Budget
from .case import Case
from .measure import Settings, measure
from .peaks import Peaks
from .ratios import add_ratios
from .record import Record


@dataclass(frozen=True)
class Job:
    """A case to be made when its turn comes, and what to add to its rows once measured."""

    name: str
    make: Callable[[], Case]
    after: Callable[[Case, list[dict], Budget], None] | None = None


def _progress_bar() -> Progress:
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


def _noise(row: dict) -> float:
    """Of a row with times; infinite where two few runs say nothing."""
    noise = row["cold"]["noise"]
    return float("inf") if noise is None else noise


def _settle(old: list[dict], new: list[dict]) -> None:
    """Replace a case's rows by those of a second run, all of them, since ratios hold within a run,
    where its worst spread is smaller."""
    again = {row["impl"]: row for row in new}
    pairs = [(row, again.get(row["impl"], {})) for row in old if "cold" in row]
    if not all("cold" in b for _, b in pairs):
        return
    if max(_noise(b) for _, b in pairs) < max(_noise(a) for a, _ in pairs):
        for row, other in pairs:
            kept = {key: row[key] for key in ("peak_bytes", "energy") if key in row}
            row.clear()
            row.update(other, **kept, remeasured=True)


def measure_all(
    jobs: Sequence[Job], record: Record, settings: Settings, peaks: Peaks, title: str,
    seconds: float | None = None,
) -> None:  # fmt: skip
    """Measure every case into the record; those whose times spread too far once more at the end.

    ``seconds`` limits the whole; cases that it leaves out are named in the record's "cut".
    """
    budget = Budget(seconds, len(jobs))
    disturbed: list[tuple[Job, list[dict]]] = []
    with _progress_bar() as progress:
        task = progress.add_task(title, total=len(jobs))

        def run(job: Job) -> list[dict]:
            progress.update(task, description=f"{title}: {job.name}")
            case = job.make()
            rows = measure(case, settings, peaks, budget)
            if job.after is not None:
                job.after(case, rows, budget)
            if case.device.type == "cuda":
                del case
                torch.cuda.empty_cache()
            return rows

        for job in jobs:
            if budget.start_case():
                rows = run(job)
                record.add(rows)
                if any(row["status"] == "unstable" for row in rows):
                    disturbed.append((job, rows))
            else:
                record.content.setdefault("cut", []).append(job.name)
            progress.advance(task)
        progress.update(task, total=len(jobs) + len(disturbed))
        budget.cases = len(disturbed)
        for job, rows in disturbed:
            if budget.start_case():
                _settle(rows, run(Job(job.name, job.make)))
                add_ratios(rows)
                record.save()
            progress.advance(task)


def run_jobs(
    jobs: Sequence[Job],
    suite: str,
    device: torch.device,
    settings: Settings,
    path: Path | None,
    seconds: float | None = None,
    report: Callable[[dict], None] | None = None,
    record: Record | None = None,
    peaks: Peaks | None = None,
) -> Record:
    """Measure, save, print. Exits with 130 when interrupted, 1 when one of our outputs is wrong."""
    record = record or Record(path, device, settings)
    record.peaks = peaks or Peaks(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    with record:
        try:
            measure_all(jobs, record, settings, record.peaks, suite, seconds)
        finally:
            record.save()
            (report or show.print_content)(record.content)
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
