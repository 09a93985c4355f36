"""Reports and claims as a table for people, JSON, or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from .inspect import Report, Row

FORMATS = ("table", "json", "csv")


def check_format(format: str) -> None:
    """ValueError unless ``format`` is one of FORMATS."""
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed are {', '.join(FORMATS)}")


def _sides(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}×{pair[1]}"


def row_values(row: Row) -> dict:
    """A row as plain values, in the order of the columns."""
    return {
        "name": row.name,
        "type": row.type,
        "output": list(row.output),
        "elements": row.elements,
        "bytes": row.bytes,
        "parameters": row.parameters,
        "weights": row.weights,
        "biases": row.biases,
        "macs": row.macs,
        "flops": row.flops,
        "receptive_field": list(row.receptive_field),
        "jump": list(row.jump),
        "depth": row.depth,
        "fused": row.fused,
    }


def report_values(report: Report) -> dict:
    """A report as plain values."""
    return {
        "model": report.model,
        "variant": report.variant,
        "input_size": list(report.input_size),
        "batch": report.batch,
        "bytes_per_element": report.itemsize,
        "layers": [row_values(row) for row in report.rows],
        "totals": {
            "activations": report.activations,
            "activation_bytes": report.activation_bytes,
            "parameters": report.parameters,
            "parameters_without_biases": report.weights,
            "fixed": report.fixed,
            "macs": report.macs,
            "flops": report.flops,
            "depth": report.depth,
        },
    }


def to_csv(rows: Sequence[dict]) -> str:
    """Rows of plain values as CSV; lists as 3x224x224."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                k: "x".join(map(str, v)) if isinstance(v, (list, tuple)) else v
                for k, v in row.items()
            }
        )
    return out.getvalue()


def to_text(renderable, width: int | None = None) -> str:
    """What rich prints, as plain text; as wide as it needs unless ``width`` says otherwise."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(), width=width or 200, force_terminal=False, color_system=None
    )
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def report_table(report: Report):
    """A report as a rich table."""
    from rich.table import Table

    title = " ".join(filter(None, (report.model, f"({report.variant})" if report.variant else "")))
    size = "×".join(map(str, report.input_size))
    table = Table(title=f"{title}, input {size}, batch {report.batch}", title_justify="left")
    table.add_column("layer")
    table.add_column("type")
    for name in (
        "output", "memory", "parameters", "MACs", "FLOPs", "receptive field", "jump", "depth",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    memory = report.input_elements * report.itemsize
    table.add_row("input", "", size, f"{memory:,}", "0", "0", "0", "1", "1", "0")
    for row in report.rows:
        table.add_row(
            row.name, row.type + (" *" if row.fused else ""), "×".join(map(str, row.output)),
            f"{row.bytes:,}", f"{row.parameters:,}", f"{row.macs:,}", f"{row.flops:,}",
            _sides(row.receptive_field), _sides(row.jump), str(row.depth),
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "total", "", "", f"{report.activation_bytes:,}", f"{report.parameters:,}",
        f"{report.macs:,}", f"{report.flops:,}", "", "", str(report.depth),
    )  # fmt: skip
    notes = [f"memory: bytes of the layer's output, {report.itemsize} per element"]
    if any(row.fused for row in report.rows):
        notes.append("*: a fused kernel does not write this output in inference")
    if report.fixed:
        notes.append(f"{report.fixed:,} more values are fixed, not trained")
    ran = sum(row.parameters for row in report.rows)
    if report.parameters > ran:
        notes.append(
            f"{report.parameters - ran:,} parameters are in parts that did not run or show"
        )
    table.caption, table.caption_justify = "; ".join(notes), "left"
    return table


def render(report: Report, format: str = "table") -> str:
    """A report as text.

    Args:
        report: of :func:`~cnnkernels.analysis.inspect_model`.
        format: "table", "json" or "csv" (the rows only).
    """
    check_format(format)
    if format == "json":
        return json.dumps(report_values(report), indent=2) + "\n"
    if format == "csv":
        return to_csv([row_values(row) for row in report.rows])
    return to_text(report_table(report))
