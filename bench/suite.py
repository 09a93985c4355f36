"""Runs networks: time per batch size, layers, memory and energy, and the tables that show them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.text import Text

from .. import models
from . import energy, layerwise, memory, networks, ratios, show, training
from .budget import Budget
from .case import Case
from .measure import Settings
from .record import Record
from .rivals import eager_twin
from .run import Job, finish, run_jobs

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
    compile_modes: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()  # sets of optimize()'s optional rewrites, each joined by +
    other_layout: bool = False
    quick: bool = False
    training: bool = False


def sets_of(suite: str, device: torch.device, quick: bool):
    """(networks, batch sizes, torch.compile modes) that a command measures when none are named."""
    if suite == "train":
        names = training.QUICK_FAMILIES[device.type] if quick else training.FAMILIES
        return names, [training.BATCH[device.type]], ()
    if suite == "models":
        modes = ("default",) if device.type == "cuda" and not quick else ()
        return (FAMILIES if quick else FAMILIES + MORE), [], modes
    return FAMILIES, [], ()


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


def _batches(plan: Plan, flops: int, device: torch.device) -> list[int]:
    if plan.batches:
        return list(plan.batches)
    choice = (QUICK_BATCHES if plan.quick else BATCHES)[device.type]
    limit = (QUICK_MAX_FLOPS if plan.quick else MAX_FLOPS)[device.type]
    return [b for i, b in enumerate(choice) if i == 0 or b * flops <= limit]


def _add_costs(case: Case, rows: list[dict], plan: Plan, budget: Budget, energy_too: bool) -> None:
    """Add peak memory and energy to the ok rows; energy as long as the case's time lasts."""
    inputs = case.make_inputs(torch.Generator(case.device).manual_seed(0))
    for row in rows:
        if row["status"] != "ok":
            continue
        run = case.candidates[row["impl"]].bind(*inputs)
        # A CUDA graph's memory was taken when it was captured: a peak seen now would leave it out.
        graphs = row["impl"].startswith(("compile", "cnnkernels opt", "tensorrt"))
        if not (graphs and case.device.type == "cuda"):
            row["peak_bytes"] = memory.peak_bytes(run, case.device)
        if energy_too and budget.left > energy.MIN_SECONDS:
            row["energy"] = energy.measure(run, case.device, case.images)


@dataclass
class _Series:
    """One network in one precision: a case per batch size, made from one copy of the network."""

    build: Callable[[], networks.Network]  # cached: built when the first case's turn comes
    plan: Plan
    dtype: str
    device: torch.device
    record: Record
    batches: list[int]

    def jobs(self, text: str) -> list[Job]:
        layout = self.plan.layout
        return [
            Job(f"{text} batch {b} {self.dtype} {layout}", partial(self._make, b), self._after)
            for b in self.batches
        ]

    def _make(self, batch: int) -> Case:
        network, plan = self.build(), self.plan
        entry = network.facts()
        if not any(m["model"] == entry["model"] and m["variant"] == entry["variant"]
                   for m in self.record.content["models"]):  # fmt: skip
            self.record.add_model(entry)
        if plan.training:
            return training.make_case(
                network, batch, self.dtype, plan.layout, self.device, plan.compile_modes
            )
        return networks.make_case(
            network, batch, self.dtype, plan.layout, self.device, plan.compile_modes,
            plan.other_layout, plan.passes,
        )  # fmt: skip

    def _after(self, case: Case, rows: list[dict], budget: Budget) -> None:
        batch, plan = case.images, self.plan
        last = batch == self.batches[-1]
        # A quick run takes the energy of the last batch only.
        _add_costs(case, rows, plan, budget, plan.energy and (last or not plan.quick))
        mine = next((row for row in rows if row["impl"] == "cnnkernels"), None)
        at = self.batches[-1] if self.device.type == "cuda" else self.batches[0]
        if not plan.layers or batch != at or mine is None or mine["status"] in ("wrong", "failed"):
            return
        network = self.build()
        layers = layerwise.measure(
            network, batch, self.dtype, plan.layout, self.device, self.record.peaks,
            passes=3 if plan.quick else 7, seconds=max(budget.left, 0.0),
        )  # fmt: skip
        entry = next(m for m in self.record.content["models"]
                     if (m["model"], m["variant"]) == (network.name, network.variant))  # fmt: skip
        entry["layers"].append(
            {"batch": batch, "dtype": self.dtype, "layout": plan.layout, "rows": layers}
        )


def run_networks(
    names: Sequence[str],
    plan: Plan,
    device: torch.device,
    settings: Settings,
    path: Path | None,
    seconds: float | None = None,
    print_layers: bool = False,
) -> Record:
    """Measure networks or their training steps, save, print. Exits as :func:`run.run_jobs`."""
    record = Record(path, device, settings)
    jobs = []
    for name in check_names(names):
        # One network is held at a time: its jobs follow each other.
        build = partial(_build, name, plan.photographs)
        flops = 0 if plan.batches else networks.flops_of(_outline(name))
        for dtype in plan.dtypes:
            batches = _batches(plan, flops, device)
            jobs += _Series(build, plan, dtype, device, record, batches).jobs(name)
    title = "training steps" if plan.training else "networks"
    report = partial(print_summary, print_layers=print_layers)
    return run_jobs(jobs, title, device, settings, path, seconds, report, record)


_build = functools.lru_cache(maxsize=1)(networks.build)


def _outline(text: str):
    """The network in torch's own ops, without memory for its weights."""
    with torch.device("meta"):
        return eager_twin(models.create(*networks.parse_name(text)))


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


def print_summary(content: dict, print_layers: bool = False) -> None:
    """One line per network, batch and implementation; layer by layer where asked for."""
    if print_layers:
        for entry in content["models"]:
            for layers in entry["layers"]:
                show.console.print(layers_table(entry, layers))
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
        if row["status"] in ("absent", "cut"):
            continue  # named once, below
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
        rival = ratios.best_rival(row, content["rows"]) if row["ours"] else None
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
    show.print_verdicts(content)


__all__ = ["FAMILIES", "MORE", "Plan", "finish", "print_summary", "run_networks"]
