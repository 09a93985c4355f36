"""Options that the commands of ``cnnkernels bench`` share, and how their values are read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Layout(str, Enum):
    """How the command line names memory layouts."""

    NCHW = "NCHW"
    NHWC = "NHWC"


Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL...]", help="Networks, as name or name:variant."),
]
Batch = Annotated[str, typer.Option(help="Comma-separated; chosen by device and size if empty.")]
Dtype = Annotated[str, typer.Option(help="Comma-separated: bf16,fp16,tf32,fp32.")]
OneLayout = Annotated[Layout, typer.Option(help="Of images and activations.")]
Photographs = Annotated[
    bool, typer.Option("--photographs", help="Real images instead of random numbers.")
]
Energy = Annotated[bool, typer.Option(help="Joules per image, at least 1 s each.")]
Compile = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated torch.compile rivals: default, max-autotune, frozen (max-autotune "
        "with constant weights); none for none."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU where there is one.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds and smaller batches.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the JSON and the report; nothing is written without it."),
]
Only = Annotated[str, typer.Option(help="Only cases whose name contains this.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the random inputs; fresh ones by default.")]
Seconds = Annotated[
    float | None, typer.Option(help="Time limit of a candidate in a case, in seconds.")
]
Warm = Annotated[bool, typer.Option(help="Also with warm caches.")]
BudgetSeconds = Annotated[
    float | None,
    typer.Option(
        "--budget",
        help="Time limit of the whole run in seconds, divided among its cases; what it cuts is "
        "listed. 0 for none; by default a GPU's suites end within 10 minutes together.",
    ),
]

# Seconds by default: the suites of a GPU together, and each of a CPU with --quick.
GPU_BUDGETS = {"ops": 240.0, "conv": 130.0, "models": 150.0, "train": 60.0, "run": 150.0}
QUICK_CPU_BUDGET = 150.0


def device_of(name: str):
    """The torch.device of --device; ValueError naming what is allowed."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; allowed are auto, cpu and cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device is {name!r}, but torch sees no NVIDIA GPU")
    device = torch.device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def settings_of(quick: bool, seed: int | None, seconds: float | None, warm: bool = True):
    """measure.Settings of the options."""
    from .measure import Settings

    kwargs = {"seed": seed, "warm": warm and not quick}
    if seconds is not None:
        if not seconds > 0:
            raise ValueError(f"--seconds is {seconds}; it must be positive")
        kwargs["max_seconds"] = seconds
    return Settings.quick(**kwargs) if quick else Settings(**kwargs)


def budget_of(seconds: float | None, suite: str, device, quick: bool) -> float | None:
    """Seconds of the whole run; None without a limit."""
    if seconds is not None:
        if not seconds >= 0:
            raise ValueError(f"--budget is {seconds}; it must be positive, or 0 for no limit")
        return seconds or None
    if device.type == "cuda":
        return GPU_BUDGETS.get(suite)
    return QUICK_CPU_BUDGET if quick else None


def list_of(text: str, option: str, allowed) -> list[str]:
    """A comma-separated option; ValueError naming what is not allowed."""
    values = [value for value in text.split(",") if value]
    for value in values:
        if value not in allowed:
            raise ValueError(f"{option} has {value!r}; allowed are {', '.join(map(str, allowed))}")
    return values


def dtypes_of(text: str, device, allowed=("fp32", "tf32", "fp16", "bf16")) -> list[str]:
    """The precisions of --dtype; bf16 on a GPU and fp32 on a CPU where it is empty."""
    return list_of(text, "--dtype", allowed) or ["fp32" if device.type == "cpu" else "bf16"]


def sizes_of(text: str, option: str) -> list[int]:
    """Positive integers separated by commas."""
    values = [value for value in text.split(",") if value]
    if not all(value.isdigit() and int(value) > 0 for value in values):
        raise ValueError(f"{option} is {text!r}; it must be positive integers separated by commas")
    return [int(value) for value in values]


def modes_of(text: str | None, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The modes of --compile, or the suite's default where it is not given."""
    from .rivals import COMPILE_MODES

    if text is None:
        return default
    allowed = (*COMPILE_MODES, "none")
    return tuple(mode for mode in list_of(text, "--compile", allowed) if mode != "none")


def json_in(out: Path | None, name: str) -> Path | None:
    return None if out is None else out / f"{name}.json"
