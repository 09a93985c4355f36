"""``cnnkernels inspect`` and ``cnnkernels claims``."""

from __future__ import annotations

from typing import Annotated

import typer

FormatOption = Annotated[str, typer.Option("--format", help="table, json or csv.")]


def _memory(name: str, variant: str | None, batch: int) -> str:
    import torch

    from .. import models
    from .memory import measure_training_memory, predict_training_memory

    found = predict_training_memory(models.create(name, variant, device="meta"), batch)
    lines = [f"{part:<10} {size:>16,} bytes" for part, size in found.__dict__.items()]
    if torch.cuda.is_available():
        measured = measure_training_memory(models.create(name, variant, device="cuda"), batch)
        share = f" ({measured / found.peak:.3f} of the prediction)"
        lines.append(f"{'allocator':<10} {measured:>16,} bytes{share}")
    else:
        lines.append("allocator: torch sees no GPU to check the peak on")
    return "One training step with momentum SGD, fp32:\n" + "\n".join(lines)


def _input_size(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(side) for side in text.split("x"))
    except ValueError:
        raise ValueError(f"--input-size is {text!r}; it must be like 3x224x224") from None


def inspect(
    model: Annotated[str, typer.Argument(help="A network's name; --list shows all.")] = "",
    variant: Annotated[
        str | None, typer.Option(help="paper or torchvision; default: the published form.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help='Only these layers: a name or a pattern like "features.*".')
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures.")] = 1,
    input_size: Annotated[str | None, typer.Option(help="Like 3x224x224.")] = None,
    training: Annotated[
        bool, typer.Option("--training", help="In training mode: with auxiliary classifiers.")
    ] = False,
    training_memory: Annotated[
        bool, typer.Option("--training-memory", help="Also predict a training step's memory.")
    ] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List the networks.")] = False,
    format: FormatOption = "table",
) -> None:
    """Show a network layer by layer: size, memory, parameters, MACs, FLOPs, receptive field, depth."""
    from .. import models
    from ..models.registry import entry
    from . import inspect_model, render

    if list_all:
        for name in models.list_models():
            typer.echo(f"{name:<22} {', '.join(entry(name).variants)}")
        return
    if not model:
        raise ValueError("MODEL is missing; --list shows the networks")
    net = models.create(model, variant, device="meta")
    report = inspect_model(net, _input_size(input_size), batch, training=training)
    typer.echo(render(report.layer(layer) if layer else report, format), nl=False)
    if training_memory:
        typer.echo(_memory(model, variant, batch), err=format != "table")


def claims(
    number: Annotated[list[int] | None, typer.Argument(help="Only these rows.")] = None,
    format: FormatOption = "table",
) -> None:
    """Compute every number of the lecture and show it beside the lecture's figure."""
    from .claims import claims as compute
    from .claims import render_claims
    from .render import check_format

    check_format(format)
    typer.echo(render_claims(compute(number or None), format), nl=False)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(inspect)
    app.command()(claims)
