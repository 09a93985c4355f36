"""Measures one case: times its candidates against each other, then judges what they computed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from ..testing import timing
from .budget import Budget
from .case import Case, precision
from .checks import Check, as_tuple, poison, sample_images, verify
from .peaks import Peaks
from .ratios import MAX_NOISE, add_ratios, mark_unstable

MAX_SETS = 4
CHANGED_ELEMENTS = 4096


@dataclass
class Settings:
    """How long to measure. ``quick`` trades precision for time."""

    max_seconds: float = 1.0
    min_rounds: int = 7
    max_rounds: int = 100
    precision: float = 0.01  # stop once every median is known to this
    max_noise: float = MAX_NOISE  # a median known less well than this gets no speed
    warm: bool = True
    seed: int | None = None

    @classmethod
    def quick(cls, **kwargs) -> Settings:
        return cls(
            **{"max_seconds": 0.3, "min_rounds": 3, "precision": 0.03, "max_noise": 0.25, **kwargs}
        )


class _Buffers:
    """Rotating sets of inputs whose contents change before every round."""

    def __init__(self, case: Case, generator: torch.Generator):
        first = case.make_inputs(generator)
        size = max(sum(x.nbytes for x in first), 1)
        # Two sets at least, up to twice the last-level cache of them.
        wanted = math.ceil(2 * timing.last_level_cache_bytes(case.device) / size)
        self.sets = [first]
        for _ in range(min(max(wanted, 2), MAX_SETS) - 1):
            self.sets.append(case.make_inputs(generator))
        self.case = case
        self.images = sample_images(case, generator)
        self.host = torch.Generator().manual_seed(int(generator.initial_seed()) & 0x7FFFFFFF)
        self.turn = 0

    @property
    def current(self) -> tuple[torch.Tensor, ...]:
        return self.sets[self.turn % len(self.sets)]

    def next(self) -> None:
        """Turn to the next set and flip the sign of some elements of an image that gets checked."""
        self.turn += 1
        if not len(self.images):
            return
        pick = int(torch.randint(len(self.images), (1,), generator=self.host))
        for x, per_image in zip(self.current, self.case.per_image):
            if not per_image or not x.is_floating_point():
                continue
            image = x[int(self.images[pick])]
            # The image's elements in memory order: a flat view whatever the layout.
            flat = (
                image.permute(1, 2, 0) if image.dim() == 3 and not image.is_contiguous() else image
            )
            if not flat.is_contiguous():
                image.neg_()
                continue
            flat = flat.view(-1)
            size = min(CHANGED_ELEMENTS, flat.numel())
            start = int(torch.randint(flat.numel() - size + 1, (1,), generator=self.host))
            flat[start : start + size].neg_()


def _row(case: Case, name: str) -> dict:
    candidate = case.candidates.get(name)  # none: a rival that is absent
    return {
        "suite": case.suite,
        "case": case.name,
        "impl": name,
        "ours": candidate is not None and candidate.ours,
        "op": case.op,
        "dtype": case.dtype,
        "layout": case.layout,
        "shape": list(case.shape),
        "device": case.device.type,
        "flops": case.flops,
        "bytes": case.bytes,
        **case.extra,
    }


def _statistics(t: timing.Timing) -> dict:
    def us(seconds):
        return round(seconds * 1e6, 3)

    return {
        "median_us": us(t.median),
        "p5_us": us(t.percentile(5)),
        "p95_us": us(t.percentile(95)),
        "noise": round(t.noise, 4) if math.isfinite(t.noise) else None,
        "runs": len(t.seconds),
    }


def _check_facts(check: Check) -> dict:
    def short(value):
        return None if value is None or not math.isfinite(value) else float(f"{value:.3g}")

    return {
        "ok": check.ok,
        "error": short(check.error),
        "worst": short(check.worst),
        "limit": check.limit,
        "images": check.images,
        "reason": check.reason,
    }


def _refused(row: dict, status: str, reason: str) -> dict:
    """A row without any speed."""
    return {**row, "status": status, "reason": reason}


def _why_absent(error: Exception) -> bool:
    """Whether a forced backend refused: cnnkernels.use(strict=True) says "was asked for, but"."""
    return isinstance(error, RuntimeError) and "was asked for, but" in str(error)


def _usable(
    case: Case, buffers: _Buffers, rows: dict[str, dict], budget: Budget
) -> tuple[list[str], dict[str, str]]:
    """Names of the candidates that run at all, and what those that choose chose. The others get a
    row that says why not; a forced backend that "auto" chose anyway is left out."""
    usable, chosen = [], {}
    for name, reason in case.absent.items():
        rows[name] = _refused(_row(case, name), "absent", reason)
    for name, candidate in case.candidates.items():
        if candidate.ours and candidate.backend and candidate.backend in chosen.values():
            continue
        if candidate.slow and not budget.affords(name):
            rows[name] = _refused(_row(case, name), "cut", budget.reason)
            continue
        start = time.monotonic()
        try:
            candidate.bind(*buffers.current)()
            timing.synchronize(case.device)
            if candidate.explain is not None:
                chosen[name] = candidate.explain(*buffers.current)
            usable.append(name)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            rows[name] = _refused(_row(case, name), "failed", f"out of memory: {error}")
        except Exception as error:  # a rival's compiler may fail in any way; the row says how
            text = " ".join(str(error).split())[:300]
            status = "absent" if _why_absent(error) else "failed"
            rows[name] = _refused(_row(case, name), status, f"{type(error).__name__}: {text}")
        if candidate.slow:
            budget.built(name, time.monotonic() - start)
    return usable, chosen


def measure(
    case: Case, settings: Settings, peaks: Peaks, budget: Budget | None = None
) -> list[dict]:
    """Rows of one case, one per candidate, in the candidates' order.

    ``status`` is "ok"; "absent" for a rival or backend that is not there or does not take the case;
    "cut" for one that the time limit left out; "wrong" for an output that differs from the fp64
    reference; "impossible" for a time below what the machine can do; "unstable" for times that
    spread too far; "failed" where the candidate raised. Only "ok" has a speed.
    """
    budget = budget or Budget()
    generator = torch.Generator(case.device)
    seed = generator.seed() if settings.seed is None else settings.seed
    generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    rows: dict[str, dict] = {}
    with precision(case.dtype):
        buffers = _Buffers(case, generator)
        names, chosen = _usable(case, buffers, rows, budget)
        if names:
            settings = budget.settings(settings, len(names))
            cold, checks = _time_cold(case, settings, buffers, names)
            good = [name for name in names if checks[name].ok]
            warm = (
                _time(case, settings, buffers, good, cold=False) if settings.warm and good else {}
            )
            for name in names:
                rows[name] = _finish(case, name, checks[name], cold[name], warm.get(name), peaks)
                mark_unstable(rows[name], settings.max_noise)
                if name in chosen:
                    rows[name]["chosen"] = chosen[name]
    ordered = [rows[name] for name in (*case.candidates, *case.absent) if name in rows]
    add_ratios(ordered)
    return ordered


def _time(case, settings, buffers, names, *, cold, after_run=lambda name, out: None, before=None):
    bound = {}

    def before_run(name):
        if before is not None:
            before(name)
        bound[name] = case.candidates[name].bind(*buffers.current)

    def runner(name):
        return lambda: bound[name]()

    return timing.interleaved(
        {name: runner(name) for name in names},
        case.device,
        cold=cold,
        before_round=buffers.next,
        before_run=before_run,
        after_run=after_run,
        min_rounds=settings.min_rounds,
        max_rounds=settings.max_rounds,
        max_seconds=settings.max_seconds * max(1, len(names)) / 2,
        precision=settings.precision,
        hide_host=case.hide_host,
    )


def _time_cold(case, settings, buffers, names):
    """Cold times, and the verdict on what the last timed run of each candidate computed."""
    held: dict[str, object] = {}

    def before(name):
        if name in held:  # free it full of NaN: the allocator hands the same memory out again
            poison(as_tuple(held.pop(name)), buffers.current)

    def after(name, out):
        held[name] = out

    times = _time(case, settings, buffers, names, cold=True, after_run=after, before=before)
    checks = verify(case, buffers.current, held, buffers.images)
    held.clear()
    return times, checks


def _finish(case, name, check, cold, warm, peaks: Peaks) -> dict:
    row = _row(case, name)
    row["check"] = _check_facts(check)
    if not check.ok:
        return _refused(row, "wrong", check.reason)
    if cold.median < peaks.impossible(case):
        peaks.remeasure(case)
    if cold.median < (bound := peaks.impossible(case)):
        return _refused(
            row, "impossible",
            f"{cold.median * 1e6:.4g} us is faster than the machine can be ({bound * 1e6:.4g} us)",
        )  # fmt: skip
    floor = peaks.floor(case)
    row |= {
        "status": "ok",
        "cold": _statistics(cold),
        "warm": _statistics(warm) if warm is not None else None,
        "floor_us": round(floor * 1e6, 3),
        "share": round(floor / cold.median, 4),
        "tflops": round(case.flops / cold.median / 1e12, 4) if case.flops else None,
        "gbps": round(case.bytes / cold.median / 1e9, 2),
        "sm_mhz": cold.sm_mhz,
        "baseline": case.baseline,
    }
    return row
