"""What a number was measured on: machine, GPU, driver, versions, commit."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from ..testing import timing

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict:
    """CPU model, cores this process may use, memory, last-level cache."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        memory = None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": model,
        "cpu_isa": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": memory and round(memory, 1),
        "llc_mib": timing.last_level_cache_bytes(torch.device("cpu")) / 2**20,
    }


def driver_version() -> str | None:
    """The NVIDIA driver's version, or None."""
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else version
    except Exception:  # no nvidia-ml-py, or no driver: ask the kernel module
        try:
            first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
            return next((word for word in first.split() if word[0].isdigit()), None)
        except OSError:
            return None


def gpu(device: torch.device | None = None) -> dict | None:
    """Facts of a CUDA device (the current one), or None where there is none."""
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        return None
    properties = torch.cuda.get_device_properties(device or torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": properties.L2_cache_size / 2**20,
        "driver": driver_version(),
    }


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def git_commit() -> str | None:
    """The commit of a source tree, "+changes" appended when files differ from it; None elsewhere.

    ``CNNKERNELS_COMMIT`` names it where the tree was copied without its history.
    """
    if named := os.environ.get("CNNKERNELS_COMMIT"):
        return named
    if not (ROOT / ".git").exists():
        return None

    def git(*args):
        return subprocess.run(
            ["git", "-C", ROOT, *args], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict:
    """Versions of everything that decides a number."""
    import cnnkernels

    return {
        "cnnkernels": cnnkernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version_of("torchvision"),
        "triton": version_of("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "git_commit": git_commit(),
    }
