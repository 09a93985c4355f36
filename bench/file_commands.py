"""The commands of ``cnnkernels bench`` that read saved benchmarks: show, compare, report, readme."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(bench: typer.Typer) -> None:
    """Add them to the command line."""
    for command in (show, compare, report, readme):
        bench.command(command.__name__)(command)


def show(
    file: Annotated[Path, typer.Argument(help="A JSON that a benchmark wrote.")],
    brief: Annotated[
        bool, typer.Option("--brief", help="Only means, losses and rows without a speed.")
    ] = False,
) -> None:
    """Print the tables of a saved benchmark."""
    from . import record, suite
    from . import show as tables

    content = record.load(file)
    title = f"{file.name}: {tables.machine_line(content)}"
    if content["models"] and not brief:
        suite.print_summary(content, print_layers=True)
    elif brief:
        tables.console.print(title, style="bold")
        tables.print_verdicts(content)
    else:
        tables.print_content(content)
    if not content["complete"]:
        tables.console.print("interrupted: some rows are missing", style="bold red")


def compare(
    old: Annotated[Path, typer.Argument(help="JSON of the earlier run.")],
    new: Annotated[Path, typer.Argument(help="JSON of the later run.")],
    fail_over: Annotated[
        str, typer.Option(help="How much slower a row of ours may be, beyond noise.")
    ] = "5%",
    relative: Annotated[
        bool, typer.Option("--relative", help="Compare the ratios to eager, not the times.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Also rows that did not change.")] = False,
) -> None:
    """Compare two runs row by row; exit code 1 when ours got slower or broke."""
    from . import compare as comparison
    from . import record

    limit = comparison.parse_percentage(fail_over)
    before, after = record.load(old), record.load(new)
    changes = comparison.compare(before, after, limit, relative)
    if not changes:
        raise ValueError(f"{old} and {new} have no row in common")
    comparison.print_changes(changes, comparison.differences(before, after), every)
    if failed := comparison.failures(changes):
        typer.echo(f"{len(failed)} rows of ours are slower by more than {fail_over} or broke")
        raise typer.Exit(1)


def report(
    files: Annotated[list[Path], typer.Argument(help="JSON files of one machine.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and charts/.")] = Path("out"),
) -> None:
    """Make the HTML page and the charts from saved benchmarks."""
    from . import record
    from . import report as page

    typer.echo(page.write(page.merge([record.load(file) for file in files]), out))


def readme(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if it is out of date.")
    ] = False,
) -> None:
    """Rewrite the README's results from the benchmarks under bench/results/."""
    from . import readme as section

    current = section.update(check=check)
    typer.echo("up to date" if current else "out of date" if check else f"wrote {section.README}")
    if check and not current:
        raise typer.Exit(1)
