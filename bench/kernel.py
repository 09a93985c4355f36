"""``cnnkernels bench kernel``: one implementation of one op at one shape, config by config."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

from .. import _lib
from ..ops import OPS, _conv2d
from . import conv, ops
from .case import Candidate, Case, dtype_of
from .layers import ConvLayer

CONV_OPS = ("conv2d_relu", "conv2d_add_relu")
_CONV = re.compile(
    r"(?:\w+/)?(\d+)x(\d+)x(\d+)x(\d+)->(\d+)[ ,](\d+)x(\d+)/(\d+)(?:[ ,]?p(\d+))?", re.ASCII
)
_MAP = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)", re.ASCII)
# What to look at first in a profile: time, the two ceilings, tensor cores, occupancy, registers.
NCU_METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM of peak",
    "lts__t_bytes.sum": "bytes through L2",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM of peak",
    "sm__inst_executed_pipe_tensor.sum": "tensor instructions",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active",
    "launch__registers_per_thread": "registers",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank conflicts",
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


def _one_config(op: str, backend: str, config: dict, residual: bool, layer: ConvLayer) -> Candidate:
    """The implementation called directly with a config, past the dispatcher."""
    impl = OPS[op].impls[backend]
    geometry = ([layer.stride] * 2, [layer.padding] * 2, [1, 1], 1)

    def run(*inputs):
        x, *rest, w, b = inputs
        arguments = (x, w, *rest, b, *geometry)
        if (reason := impl.why_not(*arguments)) is not None:
            raise RuntimeError(f"{op}: backend {backend!r} was asked for, but {reason}")
        with torch.no_grad():
            return impl.fn(*arguments, config=config)

    return Candidate.of(run, ours=True, backend=backend)


def config_label(config: dict) -> str:
    """As in "kind=pointer block_m=128 num_warps=4"."""
    return " ".join(f"{key}={value}" for key, value in config.items()).replace(", ", ",")


def configs_of(backend: str, case: Case, layer: ConvLayer) -> list[dict]:
    """Every config that the backend has for this convolution; ValueError where it has none."""
    geometry = ([layer.stride] * 2, [layer.padding] * 2, [1, 1], 1)
    if backend == "triton":
        x, *_, w, _bias = case.make_inputs(torch.Generator(case.device))
        return list(
            _conv2d.triton_configs(
                _conv2d.problem(x, w, *geometry), case.device, case.dtype == "tf32"
            )
        )
    if backend == "cuda" and _lib.plan is not None:
        plans = _lib.plan.conv_plans(
            list(case.shape), list(layer.weight_shape), *geometry,
            str(dtype_of(case.dtype)).removeprefix("torch."), case.op == "conv2d_add_relu",
        )  # fmt: skip
        return [{"instance": plan["instance"]} for plan in plans if plan["why_not"] is None]
    raise ValueError(f"--sweep: the {backend} implementation has no configs to sweep over")


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
        for item in configs_of(backend, case, layer) if sweep else [config]:
            label = f"{backend} {config_label(item)}"
            keep[label] = _one_config(op, backend, item, residual, layer)
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
    """Run the implementation three times without timing: what a profiler looks at."""
    mine = [name for name, candidate in case.candidates.items() if candidate.ours]
    run = case.candidates[label or mine[-1]].bind(
        *case.make_inputs(torch.Generator(case.device).manual_seed(0))
    )
    for _ in range(3):
        run()
    if case.device.type == "cuda":
        torch.cuda.synchronize(case.device)


def ncu_command(arguments: Sequence[str]) -> list[str]:
    """The Nsight Compute command line for ``cnnkernels bench kernel`` with these arguments."""
    return [
        "ncu", "--metrics", ",".join(NCU_METRICS), "--csv", "--launch-skip", "2",
        sys.executable, "-m", "cnnkernels.cli", "bench", "kernel", *arguments, "--once",
    ]  # fmt: skip


def parse_ncu(text: str) -> list[dict]:
    """Rows {"kernel": name, metric: "value unit", …} of ncu's CSV, one per launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches: dict[str, dict] = {}
    for row in csv.DictReader(lines):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        name = NCU_METRICS.get(row["Metric Name"])
        if name:
            launch[name] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())


def profile(arguments: Sequence[str]) -> tuple[str, list[dict] | None]:
    """(the command line, its counters per launch); None where ncu isn't installed or fails."""
    command = ncu_command(arguments)
    shown = " ".join(f"'{part}'" if re.search(r"[\s>]", part) else part for part in command)
    if shutil.which("ncu") is None or not torch.cuda.is_available():
        return shown, None
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if result.returncode != 0:
        tail = " ".join((result.stdout + result.stderr).split())[-400:]
        raise RuntimeError(f"ncu failed with exit code {result.returncode}: {tail}")
    return shown, parse_ncu(result.stdout)
