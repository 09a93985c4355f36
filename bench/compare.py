"""Compares two benchmark files row by row: ``cnnkernels bench compare A.json B.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.text import Text

from . import ratios, show

Key = tuple[str, str, str]


def parse_percentage(text: str) -> float:
    """ "5%" or "0.05" as 0.05; ValueError naming what is allowed."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 100:
        raise ValueError(f"--fail-over is {text!r}; it must be like 5% or 0.05")
    return value


@dataclass(frozen=True)
class Change:
    """One row in both files. ``ratio`` is the new time over the old one: above 1 is slower."""

    key: Key
    ours: bool
    ratio: float | None
    noise: float  # relative bound on the ratio from both medians' 95 % intervals
    verdict: str  # "same", "faster", "slower", "broken", "repaired", "unclear"
    reason: str = ""


def _rows(content: dict) -> dict[Key, dict]:
    return {(row["suite"], row["case"], row["impl"]): row for row in content["rows"]}


def _time(row: dict, rows: dict[Key, dict], relative: bool) -> float | None:
    """A row's median, or with ``relative`` its share of its baseline's in the same file."""
    median = row["cold"]["median_us"]
    if not relative:
        return median
    base = rows.get((row["suite"], row["case"], row["baseline"]))
    return median / base["cold"]["median_us"] if base and base["status"] == "ok" else None


def _noise(*rows: dict) -> float:
    return math.sqrt(sum((row["cold"]["noise"] or 0.0) ** 2 for row in rows))


def compare(old: dict, new: dict, fail_over: float, relative: bool = False) -> list[Change]:
    """Every row that both files have. "slower" means by more than ``fail_over`` and the noise."""
    changes = []
    before, after = _rows(old), _rows(new)
    for key, row in after.items():
        if (previous := before.get(key)) is None:
            continue
        if {previous["status"], row["status"]} & {"unstable", "cut"}:
            # No time to compare, and nothing wrong either.
            changes.append(Change(key, row["ours"], None, 0.0, "unclear", row.get("reason", "")))
            continue
        was, now = previous["status"] == "ok", row["status"] == "ok"
        if not was or not now:
            if was != now:
                verdict = "repaired" if now else "broken"
                reason = "" if now else f"{row['status']}: {row['reason']}"
                changes.append(Change(key, row["ours"], None, 0.0, verdict, reason))
            continue
        times = _time(previous, before, relative), _time(row, after, relative)
        if None in times or not times[0]:
            continue
        ratio, noise = times[1] / times[0], _noise(previous, row)
        verdict = "same"
        if ratio * (1 - noise) > 1 + fail_over:
            verdict = "slower"
        elif ratio * (1 + noise) < 1 / (1 + fail_over):
            verdict = "faster"
        changes.append(Change(key, row["ours"], ratio, noise, verdict))
    return changes


def differences(old: dict, new: dict) -> list[str]:
    """What differs between the machines of two files, and rows that only one of them has."""
    lines = []
    for field in ("device", "machine.cpu", "gpu.name", "gpu.driver", "versions.torch"):
        values = []
        for content in (old, new):
            value = content
            for part in field.split("."):
                value = (value or {}).get(part)
            values.append(value)
        if values[0] != values[1]:
            lines.append(f"{field} differs: {values[0]} and {values[1]}")
    before, after = _rows(old), _rows(new)
    for name, missing in (
        ("new", before.keys() - after.keys()),
        ("old", after.keys() - before.keys()),
    ):
        if missing:
            lines.append(f"{len(missing)} rows are not in the {name} file")
    for name, content in (("old", old), ("new", new)):
        if not content["complete"]:
            lines.append(f"the {name} file was interrupted")
    return lines


def print_changes(changes: list[Change], notes: list[str], everything: bool = False) -> None:
    """The rows that changed, geometric means, and counts."""
    for note in notes:
        show.console.print(note, style="yellow", markup=False)
    table = show.new_table("New time over old time, per row")
    for name in ("suite", "case", "implementation"):
        table.add_column(name, overflow="fold")
    for name in ("ratio", "noise", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    styles = {"slower": "red", "broken": "bold red", "faster": "green", "repaired": "green"}
    for change in sorted(changes, key=lambda c: -(c.ratio or math.inf)):
        if change.verdict == "same" and not everything:
            continue
        verdict = Text(change.verdict, style=styles.get(change.verdict, ""))
        table.add_row(
            *change.key,
            "" if change.ratio is None else f"{change.ratio:.3f}",
            "" if change.ratio is None else f"±{100 * change.noise:.1f} %",
            verdict,
        )
    if table.row_count:
        show.console.print(table)
    for ours, name in ((True, "ours"), (False, "rivals")):
        found = [c.ratio for c in changes if c.ours == ours and c.ratio is not None]
        if found:
            mean = ratios.geometric_mean(found)
            show.console.print(
                f"{name}: {len(found)} rows, geometric mean {mean:.3f} of the old time"
            )
    for change in changes:
        if change.verdict == "broken":
            show.console.print(f"broken: {change.key}: {change.reason}"[:300], markup=False)


def failures(changes: list[Change]) -> list[Change]:
    """Rows of ours that got slower or broke: what makes the command fail."""
    return [c for c in changes if c.ours and c.verdict in ("slower", "broken")]
