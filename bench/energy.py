"""Joules per image: NVML's energy counter on a GPU, RAPL on a CPU where it is readable."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..testing import timing

RAPL = Path("/sys/class/powercap")
MIN_SECONDS = 1.0
CHECK_SECONDS = 5e-3  # between two looks at the counter


def _rapl_packages() -> list[Path]:
    """The package domains (intel-rapl:0, …; AMD has them under the same name) that can be read."""
    readable = []
    for folder in sorted(RAPL.glob("*-rapl:*")):
        if folder.name.count(":") == 1:  # a package, not one of its parts
            try:
                (folder / "energy_uj").read_text()
                readable.append(folder)
            except OSError:
                continue
    return readable


class _Rapl:
    def __init__(self, folders: list[Path]):
        self.folders = folders
        self.start = self._read()

    def _read(self) -> list[int]:
        return [int((folder / "energy_uj").read_text()) for folder in self.folders]

    def joules(self) -> float:
        total = 0
        for folder, before, after in zip(self.folders, self.start, self._read()):
            if after < before:  # the counter wrapped
                after += int((folder / "max_energy_range_uj").read_text())
            total += after - before
        return total / 1e6


class _Nvml:
    """Millijoules since the driver was loaded; from Volta on."""

    def __init__(self, handle):
        self.handle = handle
        self.start = self._read()

    def _read(self) -> int:
        import pynvml

        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)

    def joules(self) -> float:
        return (self._read() - self.start) / 1e3


def _counter(device: torch.device):
    """A counter that starts now, or None where the machine has none that can be read."""
    try:
        if device.type == "cuda":
            handle = timing.nvml_handle(device)
            return None if handle is None else _Nvml(handle)
        packages = _rapl_packages()
        return _Rapl(packages) if packages else None
    except Exception:  # NVML before Volta, a container, a permission: no counter, no number
        return None


def _run_until(fn, device: torch.device, done: Callable[[], bool], limit: float) -> int:
    """Run ``fn`` over and over until ``done()`` or so many seconds have passed; the number of runs.

    The host waits for the device after as many runs as take about CHECK_SECONDS.
    """
    end = time.perf_counter() + limit
    runs, burst = 0, 1
    while True:
        start = time.perf_counter()
        for _ in range(burst):
            fn()
        timing.synchronize(device)
        runs += burst
        now = time.perf_counter()
        if done() or now > end:
            return runs
        if now - start < CHECK_SECONDS / 2:
            burst *= 2


def measure(fn: Callable[[], object], device: torch.device, images: int) -> dict | None:
    """Run ``fn`` for at least a second; {"joules_per_image", "watts", "seconds", "source"}.

    The counters advance in steps of up to 100 ms: measured is from one step to another, and the
    work goes on all the time. None where there is no counter, or where it does not move: never a
    made-up 0.
    """
    fn()
    timing.synchronize(device)
    counter = _counter(device)
    if counter is None:
        return None

    def moved() -> bool:
        return counter.joules() > 0

    _run_until(fn, device, moved, MIN_SECONDS)
    if not moved():
        return None
    counter, start = _counter(device), time.perf_counter()
    runs = _run_until(
        fn, device, lambda: time.perf_counter() - start >= MIN_SECONDS, 2 * MIN_SECONDS
    )
    before = counter.joules()
    runs += _run_until(fn, device, lambda: counter.joules() > before, MIN_SECONDS)
    joules, seconds = counter.joules(), time.perf_counter() - start
    if not joules > before:
        return None
    return {
        "joules_per_image": joules / (runs * images),
        "watts": joules / seconds,
        "seconds": seconds,
        "source": "NVML" if device.type == "cuda" else "RAPL",
    }
