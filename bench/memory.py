"""Peak memory of a piece of work, from the allocator of the device."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def _cpu_peak(fn: Callable[[], object]) -> int | None:
    """From the profiler's record of torch's CPU allocator. Scratch memory that oneDNN or a kernel
    takes from the system is not in it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler announces itself on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        fn()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak if events else None


def peak_bytes(fn: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that ``fn`` holds at its peak beyond what was allocated before; None if unknown."""
    if device.type != "cuda":
        return _cpu_peak(fn)
    fn()  # workspaces and caches that stay
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    fn()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
