"""Tables on the terminal."""

from __future__ import annotations

import math
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import own
from .ratios import automatic_choice, best_rival, geometric_mean, group_ratios, left_out, losses

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
        if row["status"] in ("absent", "cut"):
            continue  # named once, below
        case = row["case"] if row["case"] != last else ""
        last = row["case"]
        label = row["impl"] + (f" ({row['chosen']})" if row.get("chosen") else "")
        name = Text(label, style="cyan" if row["ours"] else "")
        if row["status"] != "ok":
            table.add_row(case, name, Text(row["status"].upper(), style="red"))  # reasons: below
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


def machine_line(content: dict) -> str:
    """Machine, versions and ceilings of a benchmark in one line, above every table."""
    gpu, machine, peaks = content["gpu"], content["machine"], content["peaks"]
    where = gpu["name"] if gpu else f"{machine['cpu']}, {machine['threads']} threads"
    ceilings = [f"copy {peaks['copy_gbps']} GB/s"] if peaks.get("copy_gbps") else []
    ceilings += [f"{k} {v} TFLOP/s" for k, v in peaks.get("matmul_tflops", {}).items()]
    torch_version = content["versions"]["torch"]
    return f"{where} · torch {torch_version} · {', '.join(ceilings) or 'ceilings not measured'}"


def print_content(content: dict) -> None:
    """Table, geometric means, losses and what has no speed, of a benchmark of ops or layers."""
    if not content["rows"]:
        console.print("nothing was measured")
        return
    console.print(rows_table(content["rows"], machine_line(content)))
    print_verdicts(content)


def print_verdicts(content: dict) -> None:
    """Geometric means, the rows where a rival is faster, those without a speed, what is missing."""
    rows = content["rows"]
    if any(row["ours"] and row.get("ratios") for row in rows):
        console.print(summary(rows))
    for line in (*own.text(rows), *automatic_choice(rows)):
        console.print(line, markup=False, soft_wrap=True)
    slower = losses(rows)
    if slower:
        console.print(f"{len(slower)} slower than the best rival:", style="bold")
        for case, value, rival in slower:
            console.print(f"  {case}: {ratio(value)} of {rival}", markup=False)
    refused = [row for row in rows if row["status"] not in ("ok", "absent", "cut")]
    if refused:
        console.print(f"{len(refused)} rows without a speed:", style="bold red")
        for row in refused:
            line = f"  {row['case']}: {row['impl']}: {row['status']}: {row['reason']}"
            console.print(line[:300], markup=False)
    for (name, reason), count in left_out(rows).items():
        text = f"not measured: {name} ({count} rows): {reason}"
        console.print(text[:300], style="dim", markup=False)
    if cut := content.get("cut"):
        console.print(f"{len(cut)} cases cut by the time limit: {', '.join(cut)}", markup=False)
