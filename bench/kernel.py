"""``cnnkernels bench kernel``: one implementation of one op at one shape, config by config."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

from ..ops import OPS
from . import conv, ops, show
from .case import Case
from .layers import ConvLayer

CONV_OPS = ("conv2d_relu", "conv2d_add_relu")
_CONV = re.compile(
    r"(?:\w+/)?(\d+)x(\d+)x(\d+)x(\d+)->(\d+)[ ,](\d+)x(\d+)/(\d+)(?:[ ,]?p(\d+))?", re.ASCII
)
_MAP = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)", re.ASCII)
# What to look at first in a profile, by the names in ncu's own sections, which every GPU has: raw
# counters differ between generations, and ncu stops at one that it does not know.
NCU_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis")
NCU_METRICS = {
    "Duration": "time",
    "DRAM Throughput": "DRAM of peak",
    "L2 Cache Throughput": "L2 of peak",
    "Compute (SM) Throughput": "SM of peak",
    "Achieved Occupancy": "occupancy",
    "Registers Per Thread": "registers",
    "Dynamic Shared Memory Per Block": "shared memory",
    "L2 Hit Rate": "L2 hits",
}


def parse_name(text: str) -> tuple[str, str]:
    """Op and backend of "max_pool2d:cuda"; "auto" without one. ValueError naming what is allowed."""
    op, _, backend = text.partition(":")
    known = [*CONV_OPS, *(s.op for s in ops.SPECS), *(s.label for s in ops.SPECS)]
    if op not in known:
        raise ValueError(f"NAME is {text!r}; ops are {', '.join(dict.fromkeys(known))}")
    name = op if op in CONV_OPS else next(s.op for s in ops.SPECS if op in (s.op, s.label))
    if name not in OPS:
        raise ValueError(f"NAME is {text!r}, but this build has no {name}")
    if backend and backend not in OPS[name].impls:
        raise ValueError(f"NAME is {text!r}; {name} runs on {', '.join(OPS[name].impls)}")
    return op, backend or "auto"


def parse_conv(shape: str) -> tuple[ConvLayer, int]:
    """A layer and its batch from "64x56x56x256->64 1x1/1" (NxHxWxC->K RxS/stride, pP for padding)."""
    match = _CONV.fullmatch(shape.strip())
    if match is None:
        raise ValueError(
            f"--shape is {shape!r}; a convolution's is NxHxWxC->K RxS/stride, "
            'as in "64x56x56x256->64 1x1/1", with " p0" for other than half padding'
        )
    n, h, w, c, k, r, s, stride = map(int, match.groups()[:8])
    if r != s:
        raise ValueError(f"--shape is {shape!r}; only square filters are measured here")
    if min(n, h, w, c, k, r, stride) < 1:
        raise ValueError(f"--shape is {shape!r}; every size must be positive")
    padding = r // 2 if match[9] is None else int(match[9])
    if max(r - h, r - w) > 2 * padding:
        raise ValueError(f"--shape is {shape!r}; the filter is larger than the padded input")
    return ConvLayer("kernel", c, h, w, k, r, stride, padding), n


def parse_map(shape: str) -> tuple[int, ...]:
    """[N, C, H, W] from "256x96x55x55"."""
    match = _MAP.fullmatch(shape.strip())
    if match is None or "0" in match.groups():
        raise ValueError(f'--shape is {shape!r}; it must be NxCxHxW, as in "256x96x55x55"')
    return tuple(map(int, match.groups()))


def parse_config(text: str) -> dict | None:
    """A config from JSON or from "block_m=128,block_n=64"; None when empty."""
    if not text:
        return None
    try:
        if text.lstrip().startswith("{"):
            config = json.loads(text)
        else:
            pairs = (part.split("=", 1) for part in text.split(","))
            config = {key.strip(): _value(value) for key, value in pairs}
    except ValueError as error:
        raise ValueError(
            f"--config is {text!r}; it must be JSON or key=value pairs, as in "
            "block_m=128,block_n=64"
        ) from error
    return config


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def config_label(config: dict) -> str:
    """As in "kind=pointer block_m=128 num_warps=4"."""
    return " ".join(f"{key}={value}" for key, value in config.items()).replace(", ", ",")


def make_case(
    name: str,
    shape: str,
    dtype: str,
    layout: str,
    device: torch.device,
    config: dict | None = None,
    sweep: bool = False,
    phase: str = "infer",
) -> Case:
    """PyTorch's way and the implementation named, with one config or with every one it has."""
    op, backend = parse_name(name)
    if op in CONV_OPS:
        if phase != "infer":
            raise ValueError(f"--phase is {phase!r}; a convolution is measured in inference only")
        layer, batch = parse_conv(shape)
        residual = op == "conv2d_add_relu"
        case = conv.make_case(layer, batch, residual, dtype, layout, device)
        if config is not None or sweep:
            if backend == "auto":
                raise ValueError(f"NAME is {name!r}; a config belongs to a backend: {op}:triton")
            if not OPS[op].impls[backend].tunable:
                raise ValueError(f"NAME is {name!r}; {backend} takes no config")
    else:
        if config is not None or sweep:
            raise ValueError(f"NAME is {name!r}; {op} takes no config")
        spec = next(s for s in ops.SPECS if op in (s.op, s.label))
        case = ops.make_case(spec, phase, parse_map(shape), dtype, layout, device)
    keep = {label: c for label, c in case.candidates.items() if not c.ours}
    if config is not None or sweep:
        configs = [config]
        if sweep:
            inputs = case.make_inputs(torch.Generator(device))
            configs = conv.configs_of(op, backend, layer, dtype, inputs)
            if not configs:
                raise ValueError(f"--sweep: the {backend} implementation has no configs here")
        for item in configs:
            label = f"{backend} {config_label(item)}"
            keep[label] = conv.one_config(op, backend, item, layer)
    elif op in CONV_OPS:
        keep[_label(backend)] = conv.our_candidate(layer, residual, backend)
    else:
        keep[_label(backend)] = ops.MAKERS[phase](spec.ours, backend)
    case.candidates = keep
    case.suite = "kernel"
    case.name = f"{name} {shape} {dtype} {layout}"
    return case


def _label(backend: str) -> str:
    return "cnnkernels" if backend == "auto" else f"cnnkernels {backend}"


def run_once(case: Case, label: str | None = None) -> None:
    """Run the implementation without timing: what a profiler looks at. Of three runs only the last
    lies between the profiler's start and stop, after compiling, tuning and making the inputs."""
    mine = [name for name, candidate in case.candidates.items() if candidate.ours]
    run = case.candidates[label or mine[-1]].bind(
        *case.make_inputs(torch.Generator(case.device).manual_seed(0))
    )
    run()
    run()
    if case.device.type != "cuda":
        run()
        return
    torch.cuda.synchronize(case.device)
    torch.cuda.profiler.start()
    run()
    torch.cuda.synchronize(case.device)
    torch.cuda.profiler.stop()


def ncu_command(arguments: Sequence[str]) -> list[str]:
    """The Nsight Compute command line for ``cnnkernels bench kernel`` with these arguments."""
    sections = [part for name in NCU_SECTIONS for part in ("--section", name)]
    return [
        "ncu", *sections, "--csv", "--profile-from-start", "off",
        sys.executable, "-m", "cnnkernels.cli", "bench", "kernel", *arguments, "--once",
    ]  # fmt: skip


def parse_ncu(text: str) -> list[dict]:
    """Rows {"kernel": name, column: "value unit", …} of ncu's CSV, one per launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches: dict[str, dict] = {}
    for row in csv.DictReader(lines):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        name = NCU_METRICS.get(row["Metric Name"])
        if name:
            launch[name] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())


def profile(arguments: Sequence[str]) -> list[dict] | None:
    """ncu's counters per launch; None where ncu isn't installed or there is no GPU."""
    if shutil.which("ncu") is None or not torch.cuda.is_available():
        return None
    result = subprocess.run(ncu_command(arguments), capture_output=True, text=True, timeout=600)
    launches = parse_ncu(result.stdout)
    if result.returncode != 0 or not launches:  # without permission it ends well, and has no rows
        tail = " ".join((result.stdout + result.stderr).split())[-400:]
        raise RuntimeError(f"ncu gave no counters (exit code {result.returncode}): {tail}")
    return launches


def print_profile(arguments: Sequence[str]) -> None:
    """The ncu command line for these arguments, and a table of its counters where it can run."""
    arguments = [a for a in arguments if a not in ("--ncu", "--sweep")]
    show.console.print(shlex.join(ncu_command(arguments)), markup=False, soft_wrap=True)
    launches = profile(arguments)
    if launches is None:
        show.console.print("ncu is not on PATH or there is no GPU: run the line above there")
        return
    table = show.new_table("Nsight Compute")
    for column in ("kernel", *NCU_METRICS.values()):
        table.add_column(column, overflow="fold")
    for launch in launches:
        table.add_row(launch["kernel"], *(launch.get(c, "") for c in NCU_METRICS.values()))
    show.console.print(table)
