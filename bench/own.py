"""How our convolution kernels do by themselves, and the automatic choice beside them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from .layers import LAYERS
from .ratios import BEST_OWN, geometric_mean

BEHIND = 0.9  # a layer below this share of its best rival's speed is listed


@dataclass(frozen=True)
class Mean:
    """One way to run our kernels over the layers of one precision and batch size."""

    kind: str  # "auto", "own", "cuda", "triton", "cpu"
    group: str  # as in "bf16 batch 64", "bf16 batch 64 with residual"
    ratios: dict[str, float]  # case → best rival's time over ours
    missing: list[str]  # cases without a number

    @property
    def mean(self) -> float | None:
        return geometric_mean(self.ratios.values())

    @property
    def behind(self) -> dict[str, float]:
        """The layers below BEHIND, worst first."""
        worst = sorted(self.ratios.items(), key=lambda item: item[1])
        return {case: ratio for case, ratio in worst if ratio < BEHIND}


def _by_case(rows: list[dict]) -> dict[str, dict[str, dict]]:
    cases: dict[str, dict] = defaultdict(dict)
    for row in rows:
        if row["suite"] == "conv":
            cases[row["case"]][row["impl"]] = row
    return cases


def _times(impls: dict[str, dict]) -> dict[str, float]:
    """kind → our time in us, of the checked rows. The automatic choice stands for the backend that
    it chose, which has no row of its own then."""
    ours = {}
    for name, row in impls.items():
        if not row["ours"] or row["status"] != "ok":
            continue
        us = row["cold"]["median_us"]
        if name == "cnnkernels":
            ours["auto"] = us
            ours.setdefault(row.get("chosen", ""), us)
        elif name != BEST_OWN:
            ours[name.removeprefix("cnnkernels ")] = us
    own = [us for kind, us in ours.items() if kind not in ("auto", "cudnn", "reference", "")]
    if BEST_OWN in impls and impls[BEST_OWN]["status"] == "ok":
        own.append(impls[BEST_OWN]["cold"]["median_us"])
    return {**ours, **({"own": min(own)} if own else {})}


def _rivals(impls: dict[str, dict]) -> dict[str, float]:
    return {
        name: row["cold"]["median_us"]
        for name, row in impls.items()
        if not row["ours"] and row["status"] == "ok"
    }


def means(rows: list[dict]) -> list[Mean]:
    """Every kind against the best rival, per precision, batch size, and with or without residual."""
    found: dict[tuple, Mean] = {}
    cases = _by_case(rows)
    measured = {case: (_times(impls), _rivals(impls)) for case, impls in cases.items()}
    kinds = {kind for ours, _ in measured.values() for kind in ours} - {"cudnn", "reference", ""}
    for case, (ours, rivals) in measured.items():
        row = next(iter(cases[case].values()))
        group = f"{row['dtype']} batch {row['batch']}" + " with residual" * row["residual"]
        for kind in sorted(kinds):
            entry = found.setdefault((group, kind), Mean(kind, group, {}, []))
            if kind in ours and rivals:
                entry.ratios[case] = min(rivals.values()) / ours[kind]
            else:
                entry.missing.append(case)
    return [found[key] for key in sorted(found)]


def text(rows: list[dict]) -> list[str]:
    """The lines that are printed below the table; none for other suites."""
    lines = []
    for entry in means(rows):
        total = len(entry.ratios) + len(entry.missing)
        if not entry.ratios:
            continue
        line = (
            f"{entry.kind}, {entry.group}: {entry.mean:.3f}x the best rival's speed "
            f"(geometric mean of {len(entry.ratios)} of {total} layers"
            f"{'' if total == len(LAYERS) or 'residual' in entry.group else f'; all are {len(LAYERS)}'})"
        )
        if entry.behind:
            worst = ", ".join(f"{case} {ratio:.2f}" for case, ratio in entry.behind.items())
            line += f"; under {BEHIND}: {worst}"
        if entry.missing:
            line += f"; without a number: {', '.join(entry.missing)}"
        lines.append(line)
    return lines
