"""A time limit divided among cases, so that a suite ends in time by construction."""

from __future__ import annotations

import math
import time
from dataclasses import replace


class Budget:
    """Seconds for so many cases. Every case gets an equal share of what is left when it starts, so
    what a quick case does not use serves those after it.

    A candidate whose first call compiles is left out where its last compilation took longer than
    the share has left; only the very first one can run over.
    """

    def __init__(self, seconds: float | None = None, cases: int = 1):
        self.seconds = seconds
        self.cases = cases
        self.end = time.monotonic() + (math.inf if seconds is None else seconds)
        self.case_end = self.end
        self.builds: dict[str, float] = {}

    def start_case(self) -> bool:
        """Begin the next case; False when nothing is left for it."""
        now = time.monotonic()
        left, self.cases = self.end - now, max(self.cases - 1, 0)
        self.case_end = now + max(left, 0.0) / (self.cases + 1)
        return left > 0

    @property
    def left(self) -> float:
        """Seconds left of this case's share; infinite without a limit."""
        return self.case_end - time.monotonic()

    def affords(self, name: str) -> bool:
        """Whether there is time to build this candidate, going by the last time."""
        return self.left > self.builds.get(name, 0.0)

    def built(self, name: str, seconds: float) -> None:
        self.builds[name] = seconds

    def settings(self, settings, candidates: int):
        """The settings with as many seconds per candidate as the share allows."""
        allowed = max(0.8 * self.left / max(candidates, 1), 0.01)
        return replace(settings, max_seconds=min(settings.max_seconds, allowed))

    @property
    def reason(self) -> str:
        return f"the time limit of {self.seconds:.0f} s (--budget)"
