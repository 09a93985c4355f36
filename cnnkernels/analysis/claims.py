"""Every number of the lecture, computed: the list of claims and how it is shown.

A claim is a function that computes; the lecture's figure stands beside it as text and is never an
input. Rows that take training or a GPU name the command that produces them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .. import models
from .inspect import Report, inspect_model
from .render import check_format, to_csv, to_text

STATUS = {
    "agrees": "the computed value is the lecture's, at the lecture's precision",
    "differs": "it is not; the reason is given",
    "computed": "the lecture gives no figure, or a picture",
    "measured": "measured on this machine; more with the command",
    "literature": "results of others, with their source; not measured here",
}


@dataclass(frozen=True)
class Claim:
    """One row: what is claimed, the lecture's figure, ours, and why they differ."""

    number: int
    claim: str
    lecture: str
    computed: str
    status: str  # a key of STATUS
    why: str = ""
    command: str = ""
    values: dict = field(default_factory=dict)  # the computed numbers behind the text


_CLAIMS: dict[int, tuple[str, str, Callable[[], dict]]] = {}


def claim(number: int, statement: str, lecture: str):
    """Register a function that computes row ``number``; it returns Claim's other fields."""

    def decorate(compute: Callable[[], dict]) -> Callable[[], dict]:
        if number in _CLAIMS:
            raise ValueError(f"number is {number}; that claim is already registered")
        _CLAIMS[number] = (statement, lecture, compute)
        return compute

    return decorate


@functools.cache
def report(name: str, variant: str | None = None, **kwargs) -> Report:
    """The table of a network built on the meta device."""
    return inspect_model(models.create(name, variant, device="meta", **kwargs))


def agreement(ours: float, lecture: float, digits: int) -> bool:
    """Whether ``ours`` is ``lecture`` when rounded to as many significant digits."""
    return float(f"{ours:.{digits - 1}e}") == float(f"{lecture:.{digits - 1}e}")


def _load() -> None:
    from . import claims_counts, claims_runs  # noqa: F401  they register the rows


def claims(numbers: Iterable[int] | None = None) -> list[Claim]:
    """Compute the claims.

    Args:
        numbers: which rows; all by default. An unknown one is a ValueError naming what there is.
    """
    _load()
    wanted = sorted(_CLAIMS) if numbers is None else list(numbers)
    for number in wanted:
        if number not in _CLAIMS:
            raise ValueError(f"number is {number!r}; claims are 1 to {max(_CLAIMS)}")
    result = []
    for number in wanted:
        statement, lecture, compute = _CLAIMS[number]
        row = Claim(number, statement, lecture, **compute())
        if row.status not in STATUS:
            raise ValueError(f"status of claim {number} is {row.status!r}; allowed: {list(STATUS)}")
        result.append(row)
    return result


def _values(row: Claim) -> dict:
    return dict(row.__dict__)


def claims_table(rows: list[Claim]):
    """Claims as a rich table."""
    from rich.table import Table

    table = Table(show_lines=True)
    table.add_column("#", justify="right")
    for name in ("claim", "lecture", "computed", "status", "why, or the command"):
        table.add_column(name, overflow="fold")
    for row in rows:
        notes = "\n".join(filter(None, (row.why, f"$ {row.command}" if row.command else "")))
        table.add_row(str(row.number), row.claim, row.lecture, row.computed, row.status, notes)
    return table


def render_claims(rows: list[Claim], format: str = "table") -> str:
    """Claims as text: "table", "json" (with the numbers) or "csv"."""
    check_format(format)
    if format == "json":
        return json.dumps([_values(row) for row in rows], indent=2, ensure_ascii=False) + "\n"
    if format == "csv":
        return to_csv([{k: v for k, v in _values(row).items() if k != "values"} for row in rows])
    return to_text(claims_table(rows), width=160)
