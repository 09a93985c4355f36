"""The least time a layer can take on a machine of known speeds."""

from __future__ import annotations

from dataclasses import dataclass

from .inspect import Report, Row


@dataclass(frozen=True)
class Floor:
    """The least time of a layer, and what sets it."""

    name: str
    flops: int
    bytes: int
    intensity: float  # FLOPs per byte
    seconds: float
    limit: str  # "compute" or "memory"


def moved_bytes(row: Row, itemsize: int = 4) -> int:
    """Bytes a layer must move when each tensor is read or written once: input, weights, output."""
    return row.input_bytes + row.parameters * itemsize + row.bytes


def floor(row: Row, peak_flops: float, bandwidth: float, itemsize: int = 4) -> Floor:
    """The roofline's floor of one layer.

    Args:
        row: of an inspected model.
        peak_flops, bandwidth: of the machine, per second.
        itemsize: bytes per weight.
    """
    for name, value in (("peak_flops", peak_flops), ("bandwidth", bandwidth)):
        if not value > 0:
            raise ValueError(f"{name} is {value!r}; it must be positive")
    size = moved_bytes(row, itemsize)
    compute, memory = row.flops / peak_flops, size / bandwidth
    return Floor(
        row.name, row.flops, size, row.flops / size, max(compute, memory),
        "compute" if compute >= memory else "memory",
    )  # fmt: skip


def floors(report: Report, peak_flops: float, bandwidth: float) -> list[Floor]:
    """The floor of every layer of a report; their seconds add up to an unfused network's."""
    return [floor(row, peak_flops, bandwidth, report.itemsize) for row in report.rows]
