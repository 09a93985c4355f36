"""Joules per image: NVML's energy counter on a GPU, RAPL on a CPU where it is readable."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..testing import timing

RAPL = Path("/sys/class/powercap")
MIN_SECONDS = 1.0  # the counters advance in steps of up to 100 ms


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


def measure(fn: Callable[[], object], device: torch.device, images: int) -> dict | None:
    """Run ``fn`` for at least a second; {"joules_per_image", "watts", "seconds", "source"}.

    None where there is no counter, or where it did not move: never a made-up 0.
    """
    fn()
    timing.synchronize(device)
    counter = _counter(device)
    if counter is None:
        return None
    start = time.perf_counter()
    runs = 0
    while time.perf_counter() - start < MIN_SECONDS:
        fn()
        runs += 1
        if runs % 8 == 0:
            timing.synchronize(device)  # the host may not run seconds ahead
    timing.synchronize(device)
    seconds = time.perf_counter() - start
    joules = counter.joules()
    if not joules > 0:
        return None
    return {
        "joules_per_image": joules / (runs * images),
        "watts": joules / seconds,
        "seconds": seconds,
        "source": "NVML" if device.type == "cuda" else "RAPL",
    }
