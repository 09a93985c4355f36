"""The command ``cnnkernels``: doctor, and the sub-commands of the packages below.

A folder's ``commands.py`` adds its own with ``register(app)``. Those modules import what is slow to
import only inside their commands.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
from typing import Annotated

import typer

COMMANDS = (
    "cnnkernels.analysis.commands",
    "cnnkernels.optimize.commands",
    "cnnkernels.train.commands",
    "cnnkernels.tuning.commands",
    "cnnkernels.bench.commands",
)

app = typer.Typer(
    name="cnnkernels",
    help="Fused kernels for convolutional networks: what they compute, and how fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import cnnkernels

        typer.echo(cnnkernels.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the whole traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass  # main() looks for --debug itself: it is accepted after a sub-command too


def _exists(module: str) -> bool:
    """Whether a module can be found, without running it. A parent that is missing is fine; one that
    fails to import is an error that must be seen."""
    parent, _, name = module.rpartition(".")
    if parent and "." in parent and not _exists(parent):
        return False
    package = importlib.import_module(parent)
    return importlib.util.find_spec(f".{name}", package.__name__) is not None


@functools.cache
def register_all(target: typer.Typer) -> None:
    """Add every package's sub-commands, once."""
    for module in COMMANDS:
        if _exists(module):
            importlib.import_module(module).register(target)


# --- doctor ----------------------------------------------------------------------------------


def _libraries() -> dict[str, str]:
    from . import _lib

    reasons = {
        "libcnnkernels_cpu.so": _lib.cpu_missing,
        "libcnnkernels_cuda.so": _lib.cuda_missing,
        "cnnkernels._plan": _lib.plan_missing,
    }
    return {name: reason or "loaded" for name, reason in reasons.items()}


def _backends() -> dict[str, str]:
    """backend → "available", or why not."""
    import torch

    from . import _lib

    try:
        import triton

        interpreted = getattr(triton.knobs.runtime, "interpret", False)
        no_triton = None if interpreted else _lib.gpu_missing()
    except ImportError as error:
        no_triton, interpreted = f"triton does not import: {error}", False
    no_gpu = _lib.gpu_missing()
    if no_gpu is None and not torch.backends.cudnn.is_available():
        no_cudnn = f"torch {torch.__version__} was built without cuDNN"
    else:
        no_cudnn = no_gpu
    reasons = {
        "reference": None,
        "cpu": _lib.cpu_missing,
        "cuda": _lib.cuda_missing or no_gpu,
        "triton": no_triton,
        "cudnn": no_cudnn,
    }
    found = {name: f"unavailable: {why}" if why else "available" for name, why in reasons.items()}
    if interpreted:
        found["triton"] = "available, interpreted on the CPU (TRITON_INTERPRET is set): for tests"
    return found


def _facts() -> dict:
    """Everything doctor shows, as plain values."""
    from pathlib import Path

    from . import _lib
    from .bench import environment
    from .ops import OPS

    optional = ("torchvision", "matplotlib", "scikit-image", "nvidia-ml-py", "tensorboard", "onnx")
    return {
        "package": {
            "location": str(Path(__file__).resolve().parent),
            "built": _lib.plan.build_info() if _lib.plan is not None else _lib.plan_missing,
        },
        "libraries": _libraries(),
        "versions": environment.versions(),
        "machine": environment.machine(),
        "gpu": environment.gpu() or _lib.gpu_missing(),
        "backends": _backends(),
        "ops": {
            name: {
                impl.name: "default" if impl.default else "only when asked for"
                for impl in op.impls.values()
            }
            for name, op in sorted(OPS.items())
            if not name.startswith("_")
        },
        "optional packages": {name: environment.version_of(name) or "absent" for name in optional},
    }


def _lines(value) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [("", str(value))]
    result = []
    for key, item in value.items():
        if isinstance(item, dict) and key == "built":
            result += [(f"built: {k}", v) for k, v in _lines(item)]
        elif isinstance(item, dict):
            result.append((str(key), ", ".join(f"{k} ({v})" for k, v in item.items())))
        elif isinstance(item, (list, tuple)):
            result.append((str(key), ", ".join(map(str, item)) or "none"))
        else:
            result.append((str(key), "none" if item is None else str(item)))
    return result


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show what was built, what is loaded, the GPU, and why a backend is unavailable."""
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, value in facts.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in _lines(value):
            bad = text.startswith("unavailable") or "was not built" in text
            table.add_row(name, Text(text, style="yellow" if bad else ""))
        console.print(table)


# --- entry point -----------------------------------------------------------------------------


def main(args: list[str] | None = None) -> None:
    """Run the command line. Bad input ends in one line on stderr and exit code 2."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        register_all(app)
        app(args, prog_name="cnnkernels")
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {text} (--debug shows where)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
