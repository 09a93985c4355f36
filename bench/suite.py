"""Runs networks: time per batch size, layers, memory and energy, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.text import Text

from .. import models
from . import energy, layerwise, memory, networks, show, training
from .measure import Settings, measure
from .peaks import Peaks
from .record import Record
from .run import finish, progress_bar

# The classic families, in order of appearance; what `bench` measures when nothing is named.
FAMILIES = ("lenet5", "alexnet", "zfnet", "vgg16", "googlenet", "resnet18", "resnet50")
MORE = ("vgg16_bn", "vgg19", "resnet34", "resnet101", "resnet152")
BATCHES = {"cuda": (1, 16, 64, 256), "cpu": (1, 4, 16)}
QUICK_BATCHES = {"cuda": (1, 64), "cpu": (1, 4)}
# A batch with more operations than this is left out, except the first: it would take minutes.
MAX_FLOPS = {"cuda": 1e13, "cpu": 2e11}
QUICK_MAX_FLOPS = {"cuda": 1e13, "cpu": 4e10}


@dataclass
class Plan:
    """What to measure of each network."""

    dtypes: Sequence[str]
    layout: str
    batches: Sequence[int]  # empty: chosen by device and size
    photographs: bool
    layers: bool
    energy: bool
    memory: bool
    compile_modes: tuple[str, ...] = ()
    other_layout: bool = False
    quick: bool = False


def check_names(names: Sequence[str]) -> list[str]:
    """The names as given; ValueError for one that is no network (or suite)."""
    for text in names:
        name, variant = networks.parse_name(text)
        if name not in models.list_models():
            raise ValueError(
                f"{text!r} is neither a network nor a sub-command; networks are "
                f"{', '.join(models.list_models())}; sub-commands: cnnkernels bench --help"
            )
        if variant is not None and name not in models.list_models(variant):
            raise ValueError(f"{text!r}: {name} has no variant {variant!r}")
    return list(names)


def _batches(plan: Plan, network: networks.Network, device: torch.device) -> list[int]:
    if plan.batches:
        return list(plan.batches)
    choice = (QUICK_BATCHES if plan.quick else BATCHES)[device.type]
    limit = (QUICK_MAX_FLOPS if plan.quick else MAX_FLOPS)[device.type]
    return [b for i, b in enumerate(choice) if i == 0 or b * network.flops <= limit]


def _extras(case, row: dict, plan: Plan, last: bool = True) -> None:
    """Add peak memory and energy to an ok row; a quick run takes the energy of the last batch only."""
    inputs = case.make_inputs(torch.Generator(case.device).manual_seed(0))
    run = case.candidates[row["impl"]].bind(*inputs)
    # A CUDA graph's memory was taken when it was captured: a peak seen now would leave it out.
    graphs = case.device.type == "cuda" and row["impl"].startswith(("compile", "cnnkernels opt"))
    if plan.memory and not graphs:
        row["peak_bytes"] = memory.peak_bytes(run, case.device)
    if plan.energy and (last or not plan.quick):
        row["energy"] = energy.measure(run, case.device, case.images)


def _measure_network(name, plan, device, settings, peaks, record, progress, task) -> None:
    progress.update(task, description=f"{name}: building")
    network = networks.build(name, plan.photographs)
    entry = network.facts()
    record.add_model(entry)
    for dtype in plan.dtypes:
        batches = _batches(plan, network, device)
        for batch in batches:
            case = networks.make_case(
                network, batch, dtype, plan.layout, device, plan.compile_modes, plan.other_layout
            )
            progress.update(task, description=case.name)
            rows = measure(case, settings, peaks)
            for row in rows:
                if row["status"] == "ok":
                    _extras(case, row, plan, last=batch == batches[-1])
            record.add(rows)
            del case
            if device.type == "cuda":
                torch.cuda.empty_cache()
        ours = [r for r in record.rows if r["impl"] == "cnnkernels" and r["model"] == network.name]
        if plan.layers and ours and ours[-1]["status"] == "ok":
            batch = batches[-1] if device.type == "cuda" else batches[0]
            progress.update(task, description=f"{name}: layers at batch {batch}")
            passes = 3 if plan.quick else 7
            layers = layerwise.measure(network, batch, dtype, plan.layout, device, peaks, passes)
            entry["layers"].append(
                {"batch": batch, "dtype": dtype, "layout": plan.layout, "rows": layers}
            )


def run_networks(
    names: Sequence[str],
    plan: Plan,
    device: torch.device,
    settings: Settings,
    path: Path | None,
    print_layers: bool = False,
) -> Record:
    """Measure networks, save, print. Exits with 130 when interrupted, 1 when ours is wrong."""
    names = check_names(names)
    peaks = Peaks(device)
    record = Record(path, device, settings)
    record.peaks = peaks
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    with record:
        try:
            with progress_bar() as progress:
                task = progress.add_task("networks", total=len(names))
                for name in names:
                    _measure_network(name, plan, device, settings, peaks, record, progress, task)
                    progress.advance(task)
        finally:
            if print_layers:
                for entry in record.content["models"]:
                    for layers in entry["layers"]:
                        show.console.print(layers_table(entry, layers))
            record.save()
            print_summary(record.content)
    return record


def run_training(
    names: Sequence[str],
    plan: Plan,
    device: torch.device,
    settings: Settings,
    path: Path | None,
) -> Record:
    """Measure training steps, save, print; exits as :func:`run_networks`."""
    names = check_names(names)
    peaks = Peaks(device)
    record = Record(path, device, settings)
    record.peaks = peaks
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    with record:
        try:
            with progress_bar() as progress:
                task = progress.add_task("training steps", total=len(names))
                for name in names:
                    network = networks.build(name, plan.photographs)
                    record.add_model(network.facts())
                    for dtype in plan.dtypes:
                        for batch in plan.batches:
                            case = training.make_case(
                                network, batch, dtype, plan.layout, device, plan.compile_modes
                            )
                            progress.update(task, description=case.name)
                            rows = measure(case, settings, peaks)
                            for row in rows:
                                if row["status"] == "ok":
                                    _extras(case, row, plan)
                            record.add(rows)
                    progress.advance(task)
        finally:
            record.save()
            print_summary(record.content)
    return record


def layers_table(entry: dict, layers: dict):
    """The per-layer table of one network, its total in the last line."""
    title = (
        f"{entry['model']} ({entry['variant']}), batch {layers['batch']}, {layers['dtype']} "
        f"{layers['layout']}, {entry['images']}"
    )
    table = show.new_table(title)
    table.add_column("layer", no_wrap=True)
    table.add_column("type", no_wrap=True)
    for name in ("output", "MFLOP", "µs", "GFLOP/s", "GB/s", "of floor", "vs eager", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in layers["rows"]:
        head = (
            row["name"],
            Text(row["type"], style="cyan" if row["ours"] else ""),
            "×".join(map(str, row["output"])),
            show.number(row["flops"] / 1e6),
        )
        if "reason" in row:
            table.add_row(*head, "", "", "", "", "", Text(f"WRONG: {row['reason']}", style="red"))
            continue
        table.add_row(
            *head,
            show.number(row["us"], 4),
            show.number(row["gflops"]),
            show.number(row["gbps"]),
            show.percent(row["share"]),
            show.ratio(row["ratio"]),
            f"{row['error']:.1e}",
        )
    good = [row for row in layers["rows"] if "reason" not in row]
    if len(good) == len(layers["rows"]) and good:
        us = sum(row["us"] for row in good)
        flops, moved = (sum(row[k] for row in good) for k in ("flops", "bytes"))
        table.add_section()
        table.add_row(
            "sum of the layers", "", "",
            show.number(flops / 1e6), show.number(us, 4), show.number(flops / us / 1e3),
            show.number(moved / us / 1e3), show.percent(sum(r["floor_us"] for r in good) / us),
            show.ratio(sum(r["eager_us"] for r in good) / us), "",
        )  # fmt: skip
    return table


def print_summary(content: dict) -> None:
    """One line per network, batch and implementation of ours."""
    parameters = {(m["model"], m["variant"]): m for m in content["models"]}
    precisions = sorted({f"{row['dtype']} {row['layout']}" for row in content["rows"]})
    table = show.new_table(f"{show.machine_line(content)} · {', '.join(precisions)}")
    for name in ("network", "batch", "implementation"):
        table.add_column(name, no_wrap=True)
    for name in (
        "Mparam", "GFLOP/im", "ms/image", "images/s", "GFLOP/s", "of floor", "vs eager",
        "vs best", "MB peak", "J/image", "error",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for row in content["rows"]:
        entry = parameters[row["model"], row["variant"]]
        head = (
            row["model"] + (f":{row['variant']}" if row["variant"] != "paper" else ""),
            str(row["batch"]) + (f" {row['dtype']}" if len(precisions) > 1 else ""),
            Text(row["impl"], style="cyan" if row["ours"] else ""),
            show.number(entry["parameters"] / 1e6),
            show.number(entry["flops"] / 1e9),
        )
        if row["status"] != "ok":
            table.add_row(*head, Text(row["status"].upper(), style="red"))  # the reason: below
            continue
        us = row["cold"]["median_us"]
        rival = show.best_rival(row, content["rows"]) if row["ours"] else None
        peak, used = row.get("peak_bytes"), row.get("energy")
        table.add_row(
            *head,
            show.number(us / 1e3 / row["batch"]),
            show.number(row["batch"] / us * 1e6),
            show.number(row["flops"] / us / 1e3),
            show.percent(row["share"]),
            show.ratio(row["ratios"].get(row["baseline"])),
            show.ratio(rival[1]) if rival else "",
            show.number(peak / 2**20) if peak is not None else "",
            show.number(used["joules_per_image"]) if used else "n/a",
            f"{row['check']['error']:.1e}",
        )
    show.console.print(table)
    show.print_verdicts(content["rows"])


__all__ = ["FAMILIES", "MORE", "Plan", "finish", "print_summary", "run_networks", "run_training"]
