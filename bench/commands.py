"""The command line ``cnnkernels bench``: its sub-commands, thin over the modules beside this one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

DEFAULT = "run"


class _Group(TyperGroup):
    """``bench alexnet`` and ``bench --quick`` mean ``bench run …``."""

    def parse_args(self, ctx, args):
        known = {*self.commands, "--help", "-h"}
        if not args or args[0] not in known:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


bench = typer.Typer(
    cls=_Group,
    help="Measure networks, ops and kernels. `bench MODEL...` measures networks layer by layer; "
    "`bench` alone the classic families. No speed is printed for an output that differs from fp64.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


class Layout(str, Enum):
    """How the command line names memory layouts."""

    NCHW = "NCHW"
    NHWC = "NHWC"


def register(app: typer.Typer) -> None:
    """Add ``bench`` to the command line."""
    app.add_typer(bench, name="bench")


def _device(name: str):
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; allowed are auto, cpu and cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device is {name!r}, but torch sees no NVIDIA GPU")
    device = torch.device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _settings(quick: bool, seed: int | None, seconds: float | None, warm: bool = True):
    from .measure import Settings

    kwargs = {"seed": seed, "warm": warm and not quick}
    if seconds is not None:
        if not seconds > 0:
            raise ValueError(f"--seconds is {seconds}; it must be positive")
        kwargs["max_seconds"] = seconds
    return Settings.quick(**kwargs) if quick else Settings(**kwargs)


def _list(text: str, option: str, allowed) -> list[str]:
    """A comma-separated option; ValueError naming what is not allowed."""
    values = [value for value in text.split(",") if value]
    for value in values:
        if value not in allowed:
            raise ValueError(f"{option} has {value!r}; allowed are {', '.join(map(str, allowed))}")
    return values


def _sizes(text: str, option: str) -> list[int]:
    """Positive integers separated by commas."""
    values = [value for value in text.split(",") if value]
    if not all(value.isdigit() and int(value) > 0 for value in values):
        raise ValueError(f"{option} is {text!r}; it must be positive integers separated by commas")
    return [int(value) for value in values]


def _json(out: Path | None, name: str) -> Path | None:
    return None if out is None else out / f"{name}.json"


@bench.command("ops")
def ops(
    dtype: Annotated[str, typer.Option(help="Comma-separated: fp32,fp16,bf16.")] = "",
    layout: Annotated[str, typer.Option(help="Comma-separated: NHWC,NCHW.")] = "NHWC,NCHW",
    phase: Annotated[
        str, typer.Option(help="Comma-separated: infer,train,backward.")
    ] = "infer,train,backward",
    batch: Annotated[int, typer.Option(help="Images; 0 for 256 on a GPU, 8 on a CPU.")] = 0,
    compile: Annotated[bool, typer.Option(help="Also torch.compile.")] = False,
    only: Only = "",
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """The memory-bound ops: µs, GB/s, share of a copy, ratios to PyTorch."""
    from . import ops as suite
    from .case import LAYOUTS
    from .run import run_cases

    where = _device(device)
    dtypes = _list(dtype, "--dtype", ("fp32", "fp16", "bf16"))
    if not dtypes:
        dtypes = ["fp32"] if where.type == "cpu" else ["bf16", "fp32"]
    made = suite.cases(
        where,
        dtypes=dtypes,
        layouts=_list(layout, "--layout", LAYOUTS),
        phases=_list(phase, "--phase", suite.PHASES),
        maps=("alex_c1",) if quick else tuple(suite.MAPS),
        only=only,
        batch=batch or (2 if quick and where.type == "cpu" else None),
        compile=compile,
    )
    run_cases(made, "ops", where, _settings(quick, seed, seconds), _json(out, "ops"), only)


@bench.command("conv")
def conv(
    batch: Annotated[
        str, typer.Option(help="Comma-separated; default 64,256 on a GPU and 1,4 on a CPU.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="Comma-separated: bf16,fp16,tf32,fp32.")] = "",
    layout: Annotated[Layout, typer.Option(help="Of all tensors.")] = Layout.NHWC,
    residual: Annotated[bool, typer.Option(help="Also conv + residual + ReLU.")] = True,
    compile: Annotated[
        str, typer.Option(help="Also torch.compile in this mode: default or max-autotune (slow).")
    ] = "",
    only: Only = "",
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """Convolution + bias (+ residual) + ReLU on the classic networks' 44 layers."""
    from . import conv as suite
    from .case import DTYPES
    from .run import run_cases

    where = _device(device)
    modes = ("default", "max-autotune", "max-autotune-no-cudagraphs")
    if compile and compile not in modes:
        raise ValueError(f"--compile is {compile!r}; allowed are {', '.join(modes)}")
    made = suite.cases(
        where,
        batches=_sizes(batch, "--batch") or ((1,) if quick and where.type == "cpu" else ()),
        dtypes=_list(dtype, "--dtype", DTYPES) or (["fp32"] if where.type == "cpu" else ["bf16"]),
        layout=layout.value,
        only=only,
        residual=residual,
        compile_mode=compile or None,
    )
    run_cases(made, "conv", where, _settings(quick, seed, seconds), _json(out, "conv"), only)


@bench.command(DEFAULT)
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", help="Networks, as name or name:variant."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Comma-separated; by default by size.")] = "",
    dtype: Annotated[str, typer.Option(help="Comma-separated: bf16,fp16,tf32,fp32.")] = "",
    layout: Annotated[Layout, typer.Option(help="Of the images.")] = Layout.NHWC,
    photographs: Annotated[
        bool, typer.Option("--photographs", help="Real images instead of random numbers.")
    ] = False,
    layers: Annotated[bool, typer.Option(help="Also layer by layer.")] = True,
    energy: Annotated[bool, typer.Option(help="Joules per image, at least 1 s each.")] = True,
    compile: Annotated[bool, typer.Option(help="Also torch.compile.")] = False,
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """Networks: time, operations, rates, memory and energy per layer and in total."""
    from .case import DTYPES
    from .suite import FAMILIES, Plan, finish, run_networks

    where = _device(device)
    plan = Plan(
        dtypes=_list(dtype, "--dtype", DTYPES) or ["fp32" if where.type == "cpu" else "bf16"],
        layout=layout.value,
        batches=_sizes(batch, "--batch"),
        photographs=photographs,
        layers=layers,
        energy=energy,
        memory=True,
        compile_modes=("default",) if compile else (),
        quick=quick,
    )
    settings = _settings(quick, seed, seconds, warm=False)
    record = run_networks(
        names or FAMILIES, plan, where, settings, _json(out, "bench"), print_layers=bool(names)
    )
    if out is not None:
        from .report import write
        from .show import console

        console.print(f"report: {write(record.content, out)}", markup=False)
    finish(record)


@bench.command("models")
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", help="Networks, as name or name:variant."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Comma-separated; by default by size.")] = "",
    dtype: Annotated[str, typer.Option(help="Comma-separated: bf16,fp16,tf32,fp32.")] = "",
    layout: Annotated[Layout, typer.Option(help="Of the images.")] = Layout.NHWC,
    photographs: Annotated[
        bool, typer.Option("--photographs", help="Real images instead of random numbers.")
    ] = False,
    energy: Annotated[bool, typer.Option(help="Joules per image, at least 1 s each.")] = True,
    compile: Annotated[bool, typer.Option(help="Also torch.compile.")] = False,
    max_autotune: Annotated[
        bool, typer.Option("--max-autotune", help="Also torch.compile's max-autotune (slow).")
    ] = False,
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """Networks against every rival (eager in both layouts, torch.compile) over batch sizes."""
    from .case import DTYPES
    from .suite import FAMILIES, MORE, Plan, finish, run_networks

    where = _device(device)
    plan = Plan(
        dtypes=_list(dtype, "--dtype", DTYPES) or ["fp32" if where.type == "cpu" else "bf16"],
        layout=layout.value,
        batches=_sizes(batch, "--batch"),
        photographs=photographs,
        layers=False,
        energy=energy,
        memory=True,
        compile_modes=("default",) * compile + ("max-autotune",) * max_autotune,
        other_layout=True,
        quick=quick,
    )
    settings = _settings(quick, seed, seconds, warm=False)
    names = names or (FAMILIES if quick else FAMILIES + MORE)
    finish(run_networks(names, plan, where, settings, _json(out, "models")))


@bench.command("train")
def train(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", help="Networks, as name or name:variant."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Comma-separated; 64 on a GPU, 4 on a CPU.")] = "",
    dtype: Annotated[str, typer.Option(help="Comma-separated: bf16,fp16,tf32,fp32.")] = "",
    layout: Annotated[Layout, typer.Option(help="Of the images.")] = Layout.NHWC,
    photographs: Annotated[
        bool, typer.Option("--photographs", help="Real images instead of random numbers.")
    ] = False,
    compile: Annotated[bool, typer.Option(help="Also torch.compile.")] = False,
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """Training steps: time and peak memory; loss and gradients are checked with fp64."""
    from . import training
    from .case import DTYPES
    from .suite import Plan, finish, run_training

    where = _device(device)
    plan = Plan(
        dtypes=_list(dtype, "--dtype", DTYPES) or ["fp32" if where.type == "cpu" else "bf16"],
        layout=layout.value,
        batches=_sizes(batch, "--batch") or [training.BATCH[where.type]],
        photographs=photographs,
        layers=False,
        energy=False,
        memory=True,
        compile_modes=("default",) if compile else (),
        quick=quick,
    )
    settings = _settings(quick, seed, seconds, warm=False)
    names = names or (training.QUICK_FAMILIES[where.type] if quick else training.FAMILIES)
    finish(run_training(names, plan, where, settings, _json(out, "train")))


@bench.command("show")
def show_file(
    file: Annotated[Path, typer.Argument(help="A JSON that a benchmark wrote.")],
    brief: Annotated[
        bool, typer.Option("--brief", help="Only means, losses and rows without a speed.")
    ] = False,
) -> None:
    """Print the tables of a saved benchmark."""
    from . import record, show, suite

    content = record.load(file)
    title = f"{file.name}: {show.machine_line(content)}"
    if content["models"] and not brief:
        for entry in content["models"]:
            for layers in entry["layers"]:
                show.console.print(suite.layers_table(entry, layers))
        suite.print_summary(content)
    elif brief:
        show.console.print(title, style="bold")
        show.print_verdicts(content["rows"])
    else:
        show.print_rows(content["rows"], title)
    if not content["complete"]:
        show.console.print("interrupted: some rows are missing", style="bold red")


@bench.command("compare")
def compare(
    old: Annotated[Path, typer.Argument(help="JSON of the earlier run.")],
    new: Annotated[Path, typer.Argument(help="JSON of the later run.")],
    fail_over: Annotated[
        str, typer.Option(help="How much slower a row of ours may be, beyond noise.")
    ] = "5%",
    relative: Annotated[
        bool, typer.Option("--relative", help="Compare the ratios to eager, not the times.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Also rows that did not change.")] = False,
) -> None:
    """Compare two runs row by row; exit code 1 when ours got slower or broke."""
    from . import compare as comparison
    from . import record

    limit = comparison.parse_percentage(fail_over)
    before, after = record.load(old), record.load(new)
    changes = comparison.compare(before, after, limit, relative)
    if not changes:
        raise ValueError(f"{old} and {new} have no row in common")
    comparison.print_changes(changes, comparison.differences(before, after), every)
    if failed := comparison.failures(changes):
        typer.echo(f"{len(failed)} rows of ours are slower by more than {fail_over} or broke")
        raise typer.Exit(1)


@bench.command("report")
def report(
    files: Annotated[list[Path], typer.Argument(help="JSON files of one machine.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and charts/.")] = Path("out"),
) -> None:
    """Make the HTML page and the charts from saved benchmarks."""
    from . import record
    from . import report as page

    typer.echo(page.write(page.merge([record.load(file) for file in files]), out))


@bench.command("readme")
def readme(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if it is out of date.")
    ] = False,
) -> None:
    """Rewrite the README's results from the benchmarks under bench/results/."""
    from . import readme as section

    current = section.update(check=check)
    typer.echo("up to date" if current else "out of date" if check else f"wrote {section.README}")
    if check and not current:
        raise typer.Exit(1)


@bench.command("kernel")
def kernel(
    name: Annotated[str, typer.Argument(help="An op, or op:backend, as in conv2d_relu:triton.")],
    shape: Annotated[
        str, typer.Option(help='"64x56x56x256->64 1x1/1" (NxHxWxC->K RxS/stride), or NxCxHxW.')
    ],
    config: Annotated[str, typer.Option(help="JSON, or key=value pairs with commas.")] = "",
    sweep: Annotated[bool, typer.Option("--sweep", help="Every config that there is.")] = False,
    ncu: Annotated[
        bool, typer.Option("--ncu", help="Nsight Compute's command line and key counters.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", hidden=True)] = False,
    dtype: Annotated[str, typer.Option(help="bf16, fp16, tf32 or fp32.")] = "",
    layout: Annotated[Layout, typer.Option(help="Of all tensors.")] = Layout.NHWC,
    phase: Annotated[str, typer.Option(help="infer, train or backward.")] = "infer",
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """One implementation of one op at one shape: time it, sweep its configs, profile it."""
    import sys

    from . import kernel as one
    from . import show
    from .case import DTYPES
    from .ops import PHASES
    from .run import run_cases

    where = _device(device)
    (precision,) = _list(dtype, "--dtype", DTYPES) or ["fp32" if where.type == "cpu" else "bf16"]
    (kind,) = _list(phase, "--phase", PHASES)
    settings = _settings(quick, seed, seconds)
    case = one.make_case(
        name, shape, precision, layout.value, where, one.parse_config(config), sweep, kind
    )
    if once:
        one.run_once(case)
        return
    record = run_cases([lambda: case], "kernel", where, settings, _json(out, "kernel"))
    if sweep:
        good = [row for row in record.rows if row["ours"] and row["status"] == "ok"]
        best = min(good, key=lambda row: row["cold"]["median_us"], default=None)
        if best is not None:
            show.console.print(f"fastest: {best['impl']}", markup=False, soft_wrap=True)
    if ncu:
        arguments = sys.argv[sys.argv.index("kernel") + 1 :]
        command, launches = one.profile([a for a in arguments if a not in ("--ncu", "--sweep")])
        show.console.print(command, markup=False, soft_wrap=True)
        if launches is None:
            show.console.print("ncu is not on PATH or there is no GPU: run the line above there")
        else:
            table = show.new_table("Nsight Compute")
            for column in ("kernel", *one.NCU_METRICS.values()):
                table.add_column(column, overflow="fold")
            for launch in launches:
                cells = (launch.get(column, "") for column in one.NCU_METRICS.values())
                table.add_row(launch["kernel"], *cells)
            show.console.print(table)
