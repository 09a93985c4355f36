"""How long something takes on a device: medians of interleaved runs, on cold or warm caches.

GPU times are between CUDA events. Python's cost of enqueuing is hidden behind a short spin on the
device where ``hide_host`` is set, so that a kernel's time is the device's: a run whose enqueuing
took longer than its spin is repeated behind a longer one. CPU times are the host's clock. "Cold"
means that a buffer of at least twice the last-level cache was written just before. Rivals take
turns (A B A B), so that a change of clocks meets all of them.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

# Flushing: Triton's do_bench writes 256 MB; the same here, so that numbers compare with it.
CUDA_FLUSH_BYTES = 256 << 20
DEFAULT_LLC_BYTES = 32 << 20  # where the machine does not say
MAX_SPIN_SECONDS = 5e-3
SPIN_TRIES = 3  # runs of one candidate in a round, until one's enqueuing fits its spin
SPIN_CYCLES_PER_SECOND = 2e9  # above any current GPU's clock: the spin is at least this long


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed run of one candidate."""

    seconds: tuple[float, ...]
    sm_mhz: int | None = None

    @functools.cached_property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def percentile(self, percent: float) -> float:
        """Linear interpolation between the closest ranks."""
        ordered = sorted(self.seconds)
        position = (len(ordered) - 1) * percent / 100
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    @property
    def noise(self) -> float:
        """Relative half-width of the median's 95 % interval: 1.57 IQR / sqrt(n), McGill 1978."""
        if len(self.seconds) < 3:
            return math.inf
        spread = self.percentile(75) - self.percentile(25)
        return 1.57 * spread / math.sqrt(len(self.seconds)) / max(self.median, 1e-12)


@functools.cache
def last_level_cache_bytes(device: torch.device) -> int:
    """Size of the L2 of a GPU, of the last-level cache of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith(("K", "M")):
            sizes.append(int(text[:-1]) << (10 if text.endswith("K") else 20))
    return max(sizes) or DEFAULT_LLC_BYTES


@functools.cache
def _flush_buffer(device: torch.device) -> torch.Tensor:
    size = 2 * last_level_cache_bytes(device)
    if device.type == "cuda":
        size = max(size, CUDA_FLUSH_BYTES)
    return torch.empty(size // 4, dtype=torch.int32, device=device)


def flush_caches(device: torch.device) -> None:
    """Write a buffer of at least twice the last-level cache."""
    buffer = _flush_buffer(device)
    if device.type == "cuda":
        buffer.zero_()
    else:
        buffer.add_(1)  # all threads read and write: private caches are flushed too


def sm_clock_mhz(device: torch.device) -> int | None:
    """The GPU's current SM clock by NVML; None on a CPU or without nvidia-ml-py."""
    handle = nvml_handle(device)
    if handle is None:
        return None
    import pynvml

    try:
        return pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    except pynvml.NVMLError:
        return None


@functools.cache
def nvml_handle(device: torch.device):
    """NVML's handle of a CUDA device, found by its UUID; None where there is none."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        # Never by index: CUDA_VISIBLE_DEVICES renumbers, and another GPU's energy would be read.
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except Exception:  # no NVML, no driver, a container that hides it: the numbers say "n/a"
        return None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time_once(fn: Callable, device: torch.device, spin_seconds: float):
    """One call: (function giving its seconds once the device is synchronized, its output, whether
    the device may have waited for the host)."""
    if device.type != "cuda":
        start = time.perf_counter()
        out = fn()
        seconds = time.perf_counter() - start
        return (lambda: seconds), out, False
    first = torch.cuda.Event(enable_timing=True)
    last = torch.cuda.Event(enable_timing=True)
    start = time.perf_counter()
    if spin_seconds > 0:
        torch.cuda._sleep(int(spin_seconds * SPIN_CYCLES_PER_SECOND))
    first.record()
    out = fn()
    last.record()
    enqueued = time.perf_counter() - start
    return (lambda: first.elapsed_time(last) * 1e-3), out, 0 < spin_seconds < enqueued


def _nothing(*_args) -> None:
    pass


def _warm_up(fns, device, before_round, before_run, seconds: float) -> dict[str, float]:
    """Run every candidate until its time settles (clocks, autotuning, allocator); the host seconds
    that enqueuing each takes."""
    host = {}
    for name, fn in fns.items():
        deadline = time.perf_counter() + seconds
        window: list[float] = []
        while len(window) < 3 or time.perf_counter() < deadline:
            before_round()
            before_run(name)
            synchronize(device)
            start = time.perf_counter()
            fn()
            host[name] = time.perf_counter() - start
            synchronize(device)
            window.append(time.perf_counter() - start)
            recent, earlier = window[-3:], window[-6:-3]
            if len(earlier) == 3 and abs(sum(recent) - sum(earlier)) < 0.02 * sum(earlier):
                break
            if len(window) >= 3 and time.perf_counter() > deadline:
                break
    return host


def interleaved(
    fns: dict[str, Callable[[], object]],
    device: torch.device | str,
    *,
    cold: bool = True,
    before_round: Callable[[], None] = _nothing,
    before_run: Callable[[str], None] = _nothing,
    after_run: Callable[[str, object], None] = _nothing,
    min_rounds: int = 5,
    max_rounds: int = 100,
    max_seconds: float = 1.0,
    precision: float = 0.01,
    warmup_seconds: float = 0.1,
    hide_host: bool = True,
) -> dict[str, Timing]:
    """Time candidates against each other on one device.

    Args:
        fns: name → function without arguments.
        cold: flush the caches before every timed run; otherwise run once untimed just before.
        before_round: called before every round, in which each candidate runs once on equal terms.
            It should change the inputs, so that a candidate that skips the work is found out.
        before_run: called with the name before every run, outside the timed region.
        after_run: called with the name and the output of every timed run, outside that region.
        min_rounds, max_rounds, max_seconds: bounds on the timed rounds.
        precision: stop once the 95 % interval of every median is within this fraction.
        hide_host: on a GPU, spin on the device while the host enqueues.

    Returns name → :class:`Timing`, all of equally many runs.
    """
    device = torch.device(device)
    host = _warm_up(fns, device, before_round, before_run, warmup_seconds)
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    deadline = time.perf_counter() + max_seconds
    for index in range(max_rounds):
        before_round()
        # Every other round runs backwards: no candidate always follows the same neighbour.
        order = list(fns) if index % 2 == 0 else list(reversed(fns))
        pending = {}
        for name in order:
            for _ in range(SPIN_TRIES):
                before_run(name)
                if cold:
                    flush_caches(device)
                else:
                    fns[name]()
                    before_run(name)  # a backward pass has used up its graph
                spin = min(1.5 * host[name] + 2e-5, MAX_SPIN_SECONDS) if hide_host else 0.0
                pending[name], out, starved = _time_once(fns[name], device, spin)
                after_run(name, out)
                del out  # its memory is the next run's
                if not starved or spin == MAX_SPIN_SECONDS:
                    break
                host[name] *= 2
        synchronize(device)
        for name, read in pending.items():
            seconds[name].append(read())
        if index + 1 >= min_rounds:
            if all(Timing(tuple(values)).noise <= precision for values in seconds.values()):
                break
            if time.perf_counter() > deadline:
                break
    clock = sm_clock_mhz(device)
    return {name: Timing(tuple(values), clock) for name, values in seconds.items()}


class DeviceClock:
    """A timer for pytest-benchmark that advances by measured device seconds.

    Its own timer would see only the enqueue on a GPU. ``benchmark.pedantic(clock.timed(fn,
    device))`` under ``@pytest.mark.benchmark(timer=clock)`` reports the device's time, caches cold.
    """

    def __init__(self):
        self._now = 0.0

    def __call__(self) -> float:
        self._now += (
            1e-9  # pytest-benchmark waits for a timer to move when it looks for its precision
        )
        return self._now

    def timed(self, fn: Callable, device: torch.device | str, cold: bool = True) -> Callable:
        """``fn`` with its device time added to this clock."""
        device = torch.device(device)

        def run(*args, **kwargs):
            if cold:
                flush_caches(device)
            spin = 2e-4 if device.type == "cuda" else 0.0
            read, out, _ = _time_once(lambda: fn(*args, **kwargs), device, spin)
            synchronize(device)
            self._now += read()
            return out

        return run
