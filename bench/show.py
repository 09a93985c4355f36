"""Tables on the terminal."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# A pipe or a log has no width of its own; 80 columns would fold every number.
console = Console(width=None if sys.stdout.isatty() else 180)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent; "n/a" for None."""
    if value is None:
        return "n/a"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}"


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f} %"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}×"


def geometric_mean(values: Iterable[float]) -> float | None:
    """exp(mean(log)) of positive numbers; None of nothing."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def best_rival(row: dict, rows: list[dict]) -> tuple[str, float] | None:
    """(name, ratio) of the fastest checked rival that is not ours, for a row that is."""
    theirs = {
        r["impl"]
        for r in rows
        if not r["ours"] and r["suite"] == row["suite"] and r["case"] == row["case"]
    }
    found = {name: value for name, value in (row.get("ratios") or {}).items() if name in theirs}
    return min(found.items(), key=lambda item: item[1]) if found else None


def new_table(title: str) -> Table:
    """An empty table in the house style."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def rows_table(rows: list[dict], title: str) -> Table:
    """One line per row. A row that failed its check shows why, and no speed."""
    table = new_table(title)
    table.add_column("case", overflow="fold", min_width=24)
    table.add_column("implementation", no_wrap=True)
    for name in ("µs", "p5–p95", "warm µs", "TFLOP/s", "GB/s", "of floor", "vs eager", "vs best"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in rows:
        case = row["case"] if row["case"] != last else ""
        last = row["case"]
        label = row["impl"] + (f" ({row['chosen']})" if row.get("chosen") else "")
        name = Text(label, style="cyan" if row["ours"] else "")
        if row["status"] != "ok":
            style = "dim" if row["status"] == "absent" else "red"
            table.add_row(case, name, Text(row["status"].upper(), style=style))  # reasons: below
            continue
        cold, warm = row["cold"], row["warm"]
        rival = best_rival(row, rows) if row["ours"] else None
        table.add_row(
            case,
            name,
            number(cold["median_us"], 4),
            f"{number(cold['p5_us'])}–{number(cold['p95_us'])}",
            number(warm["median_us"], 4) if warm else "",
            number(row["tflops"]) if row["tflops"] else "",
            number(row["gbps"]),
            percent(row["share"]),
            ratio(row["ratios"].get(row["baseline"])),
            ratio(rival[1]) if rival else "",
        )
    return table


def group_ratios(rows: list[dict]) -> dict[tuple[str, str, str, str], list[float]]:
    """(suite, group, our implementation, rival) → the rival's times over ours, one per case."""
    groups: dict[tuple, list[float]] = defaultdict(list)
    theirs: dict[tuple, set[str]] = defaultdict(set)
    for row in rows:
        if not row["ours"]:
            theirs[row["suite"], row["case"]].add(row["impl"])
    for row in rows:
        if not row["ours"] or row["status"] != "ok":
            continue
        network = row.get("net") or row.get("phase") or row.get("model") or ""
        names = theirs[row["suite"], row["case"]] & row["ratios"].keys()
        rivals = {name: row["ratios"][name] for name in names}
        if len(rivals) > 1:
            rivals["best rival"] = min(rivals.values())
        for group in ("all", network) if network else ("all",):
            for rival, value in rivals.items():
                groups[row["suite"], group, row["impl"], rival].append(value)
    return groups


def summary(rows: list[dict], title: str = "Geometric means of the time ratios") -> Table:
    """Per suite and our implementation: how much faster than each rival, wins and losses."""
    table = new_table(title)
    for name in ("suite", "group", "implementation", "against"):
        table.add_column(name)
    for name in ("rows", "geometric mean", "worst", "best", "losses"):
        table.add_column(name, justify="right")
    for group, values in sorted(group_ratios(rows).items()):
        table.add_row(
            *group, str(len(values)), ratio(geometric_mean(values)), ratio(min(values)),
            ratio(max(values)), str(sum(v < 1 for v in values)),
        )  # fmt: skip
    return table


def losses(rows: list[dict]) -> list[str]:
    """One line per row of the automatic choice that is slower than its best rival."""
    lines = []
    for row in rows:
        if row["impl"] not in ("cnnkernels", "cnnkernels optimized") or row["status"] != "ok":
            continue
        rival = best_rival(row, rows)
        if rival and rival[1] < 1:
            name = "" if row["impl"] == "cnnkernels" else " (optimized)"
            lines.append(f"{row['case']}{name}: {ratio(rival[1])} of {rival[0]}")
    return lines


def automatic_choice(rows: list[dict]) -> list[str]:
    """How the automatic choice compares with the best single backend of each case, PyTorch's own
    ops and cuDNN called directly included."""
    times: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["status"] == "ok" and (row["ours"] or row["impl"] in ("eager", "cudnn fused")):
            times[row["suite"], row["case"]][row["impl"]] = row["cold"]["median_us"]
    ratios = {}
    for (_, case), found in times.items():
        auto = found.pop("cnnkernels", None)
        found.pop("cnnkernels optimized", None)
        if auto and any(name.startswith("cnnkernels ") for name in found):
            best = min(found, key=found.get)
            ratios[case] = (auto / found[best], best)
    if not ratios:
        return []
    worst = max(ratios, key=lambda case: ratios[case][0])
    over = sum(value > 1.03 for value, _ in ratios.values())
    mean = geometric_mean(value for value, _ in ratios.values())
    return [
        f"auto against the best backend: time {mean:.3f}× (geometric mean of {len(ratios)}), worst"
        f" {ratios[worst][0]:.3f}× of {ratios[worst][1]} ({worst}); {over} beyond 1.03×"
    ]


def machine_line(content: dict) -> str:
    """Machine, versions and ceilings of a benchmark in one line, above every table."""
    gpu, machine, peaks = content["gpu"], content["machine"], content["peaks"]
    where = gpu["name"] if gpu else f"{machine['cpu']}, {machine['threads']} threads"
    ceilings = [f"copy {peaks['copy_gbps']} GB/s"] if peaks.get("copy_gbps") else []
    ceilings += [f"{k} {v} TFLOP/s" for k, v in peaks.get("matmul_tflops", {}).items()]
    torch_version = content["versions"]["torch"]
    return f"{where} · torch {torch_version} · {', '.join(ceilings) or 'ceilings not measured'}"


def print_rows(rows: list[dict], title: str) -> None:
    """Table, geometric means, losses and refusals."""
    if not rows:
        console.print("nothing was measured")
        return
    console.print(rows_table(rows, title))
    print_verdicts(rows)


def print_verdicts(rows: list[dict]) -> None:
    """Geometric means, the rows where a rival is faster, and those without a speed."""
    if any(row["ours"] and row.get("ratios") for row in rows):
        console.print(summary(rows))
    for line in automatic_choice(rows):
        console.print(line, style="bold", highlight=False)
    slower = losses(rows)
    if slower:
        console.print(f"{len(slower)} slower than the best rival:", style="bold")
        for line in slower:
            console.print(f"  {line}", markup=False)
    refused = [row for row in rows if row["status"] not in ("ok", "absent")]
    if refused:
        console.print(f"{len(refused)} rows without a speed:", style="bold red")
        for row in refused:
            text = f"  {row['case']}: {row['impl']}: {row['status']}: {row['reason']}"
            console.print(text[:300], markup=False)
