"""What rows say together: ratios, spread, means, losses. Data only; show.py and readme.py print it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

OURS = ("cnnkernels", "cnnkernels optimized")  # what a user gets; the others force a backend
BEST_OWN = "cnnkernels own"  # the fastest of our own kernels, cuDNN left out
MAX_NOISE = 0.05  # relative half-width of a median's 95 % interval, beyond which it proves nothing


def mark_unstable(row: dict, bound: float) -> None:
    """Take the speed from an ok row whose runs spread too far: status "unstable", times kept."""
    cold = row.get("cold") or {}
    noise = math.inf if cold.get("noise") is None else cold["noise"]
    if row["status"] != "ok" or noise <= bound:
        return
    for key in ("share", "tflops", "gbps", "ratios"):
        row.pop(key, None)
    known = "unknown" if noise == math.inf else f"known to ±{100 * noise:.1f} %"
    row["status"] = "unstable"
    row["reason"] = (
        f"{cold['p5_us']:.4g} to {cold['p95_us']:.4g} us (p5, p95) over {cold['runs']} runs: "
        f"the median is {known}, allowed is {100 * bound:.0f} %"
    )


def add_ratios(rows: Iterable[dict]) -> None:
    """Per ok row, every other's time over this one's, within each case: above 1 is faster."""
    cases: dict[tuple, dict[str, dict]] = defaultdict(dict)
    for row in rows:
        if row["status"] == "ok":
            cases[row["suite"], row["case"]][row["impl"]] = row
    for ok in cases.values():
        for name, row in ok.items():
            us = row["cold"]["median_us"]
            row["ratios"] = {
                other: round(ok[other]["cold"]["median_us"] / us, 4)
                for other in ok
                if other != name
            }


def geometric_mean(values: Iterable[float]) -> float | None:
    """exp(mean(log)) of positive numbers; None of nothing."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def rivals_of(rows: list[dict]) -> dict[tuple[str, str], set[str]]:
    """(suite, case) → the names of what is not ours."""
    found: dict[tuple, set[str]] = defaultdict(set)
    for row in rows:
        if not row["ours"]:
            found[row["suite"], row["case"]].add(row["impl"])
    return found


def best_rival(row: dict, rows: list[dict]) -> tuple[str, float] | None:
    """(name, ratio) of the fastest checked rival that is not ours, for a row that is."""
    theirs = {
        r["impl"]
        for r in rows
        if not r["ours"] and r["suite"] == row["suite"] and r["case"] == row["case"]
    }
    found = {name: value for name, value in (row.get("ratios") or {}).items() if name in theirs}
    return min(found.items(), key=lambda item: item[1]) if found else None


def group_ratios(rows: list[dict]) -> dict[tuple[str, str, str, str], list[float]]:
    """(suite, group, our implementation, rival) → the rival's times over ours, one per case.

    Precisions are never mixed; convolutions of different batch sizes are neither.
    """
    groups: dict[tuple, list[float]] = defaultdict(list)
    theirs = rivals_of(rows)
    for row in rows:
        if not row["ours"] or row["status"] != "ok":
            continue
        kind = row["dtype"] + (f" batch {row.get('batch')}" if row["suite"] == "conv" else "")
        part = row.get("net") or row.get("phase") or row.get("model") or ""
        names = theirs[row["suite"], row["case"]] & row["ratios"].keys()
        rivals = {name: row["ratios"][name] for name in names}
        if len(rivals) > 1:
            rivals["best rival"] = min(rivals.values())
        for group in (f"all {kind}", f"{part} {kind}") if part else (f"all {kind}",):
            for rival, value in rivals.items():
                groups[row["suite"], group, row["impl"], rival].append(value)
    return groups


def losses(rows: list[dict]) -> list[tuple[str, float, str]]:
    """(case, ratio, rival) of every row of the automatic choice that is slower than a rival, worst
    first."""
    found = []
    for row in rows:
        if row["impl"] in OURS and row["status"] == "ok":
            rival = best_rival(row, rows)
            if rival and rival[1] < 1:
                name = row["case"] + ("" if row["impl"] == OURS[0] else " (optimized)")
                found.append((name, rival[1], rival[0]))
    return sorted(found, key=lambda loss: loss[1])


def automatic_choice(rows: list[dict]) -> list[str]:
    """How the automatic choice compares with the best single backend of each case, PyTorch's own
    ops and cuDNN called directly included; one line, none where nothing was there to choose."""
    times: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["status"] == "ok" and (row["ours"] or row["impl"] in ("eager", "cudnn fused")):
            times[row["suite"], row["case"]][row["impl"]] = row["cold"]["median_us"]
    found = {}
    for (_, case), backends in times.items():
        auto = backends.pop(OURS[0], None)
        for name in (OURS[1], BEST_OWN):
            backends.pop(name, None)
        if auto and any(name.startswith("cnnkernels ") for name in backends):
            best = min(backends, key=backends.get)
            found[case] = (auto / backends[best], best)
    if not found:
        return []
    worst = max(found, key=lambda case: found[case][0])
    over = sum(value > 1.03 for value, _ in found.values())
    mean = geometric_mean(value for value, _ in found.values())
    return [
        f"auto against the best backend: time {mean:.3f}× (geometric mean of {len(found)}), worst"
        f" {found[worst][0]:.3f}× of {found[worst][1]} ({worst}); {over} beyond 1.03×"
    ]


def left_out(rows: list[dict]) -> dict[tuple[str, str], int]:
    """(implementation, why) → in how many rows it is absent."""
    found: dict[tuple, int] = defaultdict(int)
    for row in rows:
        if row["status"] in ("absent", "cut"):
            found[row["impl"], row["reason"]] += 1
    return dict(found)
