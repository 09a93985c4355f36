"""The command line ``cnnkernels bench``: its sub-commands, thin over the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from . import file_commands
from .options import (
    Batch,
    BudgetSeconds,
    Compile,
    Device,
    Dtype,
    Energy,
    Layout,
    Names,
    OneLayout,
    Only,
    Out,
    Photographs,
    Quick,
    Seconds,
    Seed,
    Warm,
    budget_of,
    device_of,
    dtypes_of,
    json_in,
    list_of,
    modes_of,
    settings_of,
    sizes_of,
)

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


def register(app: typer.Typer) -> None:
    """Add ``bench`` to the command line."""
    app.add_typer(bench, name="bench")


def _run(jobs, suite: str, device, settings, out: Path | None, seconds, only: str = ""):
    from .run import finish, run_jobs

    if not jobs:
        raise ValueError(f"no case of {suite!r} contains {only!r}")
    record = run_jobs(jobs, suite, device, settings, json_in(out, suite), seconds)
    finish(record)
    return record


@bench.command("ops")
def ops(
    dtype: Dtype = "",
    layout: Annotated[str, typer.Option(help="Comma-separated: NHWC,NCHW.")] = "NHWC,NCHW",
    phase: Annotated[
        str, typer.Option(help="Comma-separated: infer,train,backward.")
    ] = "infer,train,backward",
    maps: Annotated[
        str, typer.Option(help="Comma-separated: alex_c1,res_c1; the first alone with --quick.")
    ] = "",
    batch: Annotated[int, typer.Option(help="Images; 0 for 256 on a GPU, 8 on a CPU.")] = 0,
    compile: Compile = None,
    warm: Warm = True,
    only: Only = "",
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    budget: BudgetSeconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """The memory-bound ops: µs, GB/s, share of a copy, ratios to PyTorch and torch.compile."""
    from . import ops as suite
    from .case import LAYOUTS

    where = device_of(device)
    modes = modes_of(compile, ("default",) if where.type == "cuda" and not quick else ())
    if "frozen" in modes:
        raise ValueError(f"--compile is {compile!r}; ops have no weights to freeze")
    jobs = suite.cases(
        where,
        dtypes=dtypes_of(dtype, where, ("fp32", "fp16", "bf16")),
        layouts=list_of(layout, "--layout", LAYOUTS),
        phases=list_of(phase, "--phase", suite.PHASES),
        maps=list_of(maps, "--maps", suite.MAPS) or list(suite.MAPS)[: 1 if quick else None],
        only=only,
        batch=batch or (2 if quick and where.type == "cpu" else None),
        compile_modes=modes,
    )
    limit = budget_of(budget, "ops", where, quick)
    _run(jobs, "ops", where, settings_of(quick, seed, seconds, warm), out, limit, only)


@bench.command("conv")
def conv(
    batch: Batch = "",
    dtype: Dtype = "",
    layout: OneLayout = Layout.NHWC,
    residual: Annotated[bool, typer.Option(help="Also conv + residual + ReLU.")] = True,
    own: Annotated[
        bool,
        typer.Option("--own", help="Also the fastest of our own kernels, all instances timed."),
    ] = False,
    engines: Annotated[bool, typer.Option(help="cuDNN's graph API and TensorRT.")] = True,
    compile: Compile = None,
    warm: Warm = True,
    only: Only = "",
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    budget: BudgetSeconds = None,
    seed: Seed = None,
    out: Out = None,
) -> None:
    """Convolution + bias (+ residual) + ReLU on the classic networks' 44 layers."""
    from . import conv as suite

    where = device_of(device)
    jobs = suite.cases(
        where,
        batches=sizes_of(batch, "--batch") or ((1,) if quick and where.type == "cpu" else ()),
        dtypes=dtypes_of(dtype, where),
        layout=layout.value,
        only=only,
        residual=residual,
        rivals=suite.Rivals(modes_of(compile), own, engines),
    )
    limit = budget_of(budget, "conv", where, quick)
    _run(jobs, "conv", where, settings_of(quick, seed, seconds, warm), out, limit, only)


def _networks(name: str, help: str, *, layers: bool = False, energy: bool = False, **fixed) -> None:
    """Add a command that measures networks. They differ in what they measure by default, and in the
    fixed fields of their plan."""

    @bench.command(name, help=help)
    def command(
        names: Names = None,
        batch: Batch = "",
        dtype: Dtype = "",
        layout: OneLayout = Layout.NHWC,
        photographs: Photographs = False,
        layers: Annotated[bool, typer.Option(help="Also layer by layer.")] = layers,
        energy: Energy = energy,
        compile: Compile = None,
        passes: Annotated[
            str, typer.Option(help="Also optimize() with these rewrites: pair,merge+concat.")
        ] = "",
        device: Device = "auto",
        quick: Quick = False,
        seconds: Seconds = None,
        budget: BudgetSeconds = None,
        seed: Seed = None,
        out: Out = None,
    ) -> None:
        from .run import finish
        from .suite import Plan, run_networks, sets_of

        where = device_of(device)
        every, batches, modes = sets_of(name, where, quick)
        plan = Plan(
            dtypes=dtypes_of(dtype, where),
            layout=layout.value,
            batches=sizes_of(batch, "--batch") or batches,
            photographs=photographs,
            layers=layers,
            energy=energy,
            compile_modes=modes_of(compile, modes),
            passes=tuple(filter(None, passes.split(","))),
            quick=quick,
            **fixed,
        )
        settings = settings_of(quick, seed, seconds, warm=False)
        path = json_in(out, "bench" if name == DEFAULT else name)
        limit = budget_of(budget, name, where, quick)
        listed = layers and bool(names)
        record = run_networks(names or every, plan, where, settings, path, limit, listed)
        if out is not None and name == DEFAULT:
            from .report import write
            from .show import console

            console.print(f"report: {write(record.content, out)}", markup=False)
        finish(record)


_networks(
    DEFAULT,
    "Networks: time, operations, rates, memory and energy per layer and in total.",
    layers=True,
    energy=True,
)
_networks(
    "models",
    "Networks against every rival (eager in both layouts, torch.compile, TensorRT) by batch size.",
    energy=True,
    other_layout=True,
)
_networks(
    "train",
    "Training steps: time and peak memory; loss and gradients are checked with fp64.",
    training=True,
)


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
    layout: OneLayout = Layout.NHWC,
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
    from .ops import PHASES
    from .run import Job

    where = device_of(device)
    (precision,) = dtypes_of(dtype, where)
    (kind,) = list_of(phase, "--phase", PHASES)
    settings = settings_of(quick, seed, seconds)
    case = one.make_case(
        name, shape, precision, layout.value, where, one.parse_config(config), sweep, kind
    )
    if once:
        one.run_once(case)
        return
    record = _run([Job(case.name, lambda: case)], "kernel", where, settings, out, None)
    if sweep:
        good = [row for row in record.rows if row["ours"] and row["status"] == "ok"]
        best = min(good, key=lambda row: row["cold"]["median_us"], default=None)
        if best is not None:
            show.console.print(f"fastest: {best['impl']}", markup=False, soft_wrap=True)
    if ncu:
        one.print_profile(sys.argv[sys.argv.index("kernel") + 1 :])


file_commands.register(bench)
