"""One self-contained HTML page of a benchmark: charts, sortable tables, losses, refusals."""

from __future__ import annotations

from pathlib import Path

import jinja2
import matplotlib.pyplot as plt

from . import charts, literature, ratios, show
from .record import write_atomically

TEMPLATES = Path(__file__).resolve().parent / "templates"


def _cell(value, digits: int = 3, suffix: str = "") -> dict:
    """A table cell: what is shown, and what it sorts by."""
    if value is None:
        return {"text": "n/a", "sort": ""}
    if isinstance(value, str):
        return {"text": value, "sort": value}
    text = f"{value:,}" if isinstance(value, int) else show.number(value, digits)
    return {"text": text + suffix, "sort": repr(float(value))}


def _network_rows(content: dict) -> list[dict]:
    entries = {(m["model"], m["variant"]): m for m in content["models"]}
    rows = []
    for row in content["rows"]:
        if row["suite"] not in ("models", "train") or row["status"] in ("absent", "cut"):
            continue
        entry = entries.get((row["model"], row["variant"]), {})
        cells = [
            _cell(
                f"{row['model']}" + ("" if row["variant"] == "paper" else f" ({row['variant']})")
            ),
            _cell("training step" if row["suite"] == "train" else "inference"),
            _cell(row["batch"]),
            _cell(f"{row['dtype']} {row['layout']}"),
            _cell(row["impl"]),
            _cell(entry.get("parameters", 0) / 1e6),
            _cell(row["flops"] / row["batch"] / 1e9),
        ]
        if row["status"] == "ok":
            us, energy = row["cold"]["median_us"], row.get("energy")
            rival = ratios.best_rival(row, content["rows"]) if row["ours"] else None
            peak = row.get("peak_bytes")
            cells += [
                _cell(us / 1e3 / row["batch"]),
                _cell(row["batch"] / us * 1e6),
                _cell(row["flops"] / us / 1e3),
                _cell(100 * row["share"], suffix=" %"),
                _cell(row["ratios"].get(row["baseline"]), suffix="×") if row["ours"] else _cell(""),
                _cell(rival[1], suffix="×") if rival else _cell(""),
                _cell(peak / 2**20) if peak is not None else _cell(None),
                _cell(energy["joules_per_image"]) if energy else _cell(None),
                _cell(f"{row['check']['error']:.1e}"),
            ]
        rows.append({"ours": row["ours"], "cells": cells, "refused": _refusal(row)})
    return rows


NETWORK_HEAD = [
    "network", "what", "batch", "precision", "implementation", "Mparam", "GFLOP/image", "ms/image",
    "images/s", "GFLOP/s", "of floor", "vs eager", "vs best", "MiB peak", "J/image", "error",
]  # fmt: skip
CASE_HEAD = [
    "case", "implementation", "µs", "p5", "p95", "warm µs", "TFLOP/s", "GB/s", "of floor",
    "vs eager", "vs best", "error",
]  # fmt: skip
LAYER_HEAD = [
    "layer", "type", "output", "MFLOP", "µs", "GFLOP/s", "GB/s", "of floor", "vs eager", "error",
]  # fmt: skip


def _refusal(row: dict) -> str:
    return "" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"


def _case_rows(content: dict, suite: str) -> list[dict]:
    rows = []
    for row in content["rows"]:
        if row["suite"] != suite or row["status"] in ("absent", "cut"):
            continue
        label = row["impl"] + (f" ({row['chosen']})" if row.get("chosen") else "")
        cells = [_cell(row["case"]), _cell(label)]
        if row["status"] == "ok":
            cold, warm = row["cold"], row["warm"]
            rival = ratios.best_rival(row, content["rows"]) if row["ours"] else None
            cells += [
                _cell(cold["median_us"], 4),
                _cell(cold["p5_us"]),
                _cell(cold["p95_us"]),
                _cell(warm["median_us"], 4) if warm else _cell(""),
                _cell(row["tflops"]) if row["tflops"] else _cell(""),
                _cell(row["gbps"]),
                _cell(100 * row["share"], suffix=" %"),
                _cell(row["ratios"].get(row["baseline"]), suffix="×") if row["ours"] else _cell(""),
                _cell(rival[1], suffix="×") if rival else _cell(""),
                _cell(f"{row['check']['error']:.1e}"),
            ]
        rows.append({"ours": row["ours"], "cells": cells, "refused": _refusal(row)})
    return rows


def _layer_tables(content: dict) -> list[dict]:
    tables = []
    for entry in content["models"]:
        for layers in entry["layers"]:
            rows = []
            for row in layers["rows"]:
                cells = [
                    _cell(row["name"]),
                    _cell(row["type"]),
                    _cell("×".join(map(str, row["output"]))),
                    _cell(row["flops"] / 1e6),
                ]
                if "reason" not in row:
                    cells += [
                        _cell(row["us"], 4),
                        _cell(row["gflops"]),
                        _cell(row["gbps"]),
                        _cell(100 * row["share"], suffix=" %"),
                        _cell(row["ratio"], suffix="×"),
                        _cell(f"{row['error']:.1e}"),
                    ]
                refused = f"wrong: {row['reason']}" if "reason" in row else ""
                rows.append({"ours": row["ours"], "cells": cells, "refused": refused})
            title = f"{entry['model']} ({entry['variant']}), batch {layers['batch']}"
            tables.append({"title": f"{title}, {layers['dtype']} {layers['layout']}", "rows": rows})
    return tables


def _means(content: dict) -> list[dict]:
    return [
        {
            "ours": False,
            "refused": "",
            "cells": [
                *map(_cell, group),
                _cell(len(values)),
                *(
                    _cell(v, suffix="×")
                    for v in (ratios.geometric_mean(values), min(values), max(values))
                ),
                _cell(sum(v < 1 for v in values)),
            ],
        }
        for group, values in sorted(ratios.group_ratios(content["rows"]).items())
    ]


MEANS_HEAD = ["suite", "group", "implementation", "against", "rows", "geometric mean", "worst",
              "best", "losses"]  # fmt: skip


def render(content: dict, figures: dict[str, plt.Figure]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    tables = [
        {"id": "means", "title": "Geometric means of the time ratios", "head": MEANS_HEAD,
         "rows": _means(content)},
        {"id": "networks", "title": "Networks", "head": NETWORK_HEAD,
         "rows": _network_rows(content)},
        {"id": "conv", "title": "Convolutions", "head": CASE_HEAD,
         "rows": _case_rows(content, "conv")},
        {"id": "ops", "title": "Memory-bound ops", "head": CASE_HEAD,
         "rows": _case_rows(content, "ops")},
    ]  # fmt: skip
    return environment.get_template("report.html.j2").render(
        content=content,
        machine=show.machine_line(content),
        charts=[
            {"title": charts.TITLES[name], "svg": charts.inline_svg(figure, name)}
            for name, figure in figures.items()
        ],
        citations=literature.ACCURACIES,
        tables=[table for table in tables if table["rows"]],
        layer_head=LAYER_HEAD,
        layers=_layer_tables(content),
        losses=[
            f"{case}: {show.ratio(value)} of {rival}"
            for case, value, rival in ratios.losses(content["rows"])
        ],
        refused=[
            f"{row['case']}: {row['impl']}: {_refusal(row)}"
            for row in content["rows"]
            if row["status"] not in ("ok", "absent", "cut")
        ],
        images=sorted({m["images"] for m in content["models"]}),
    )


def merge(contents: list[dict]) -> dict:
    """Several benchmark files of one machine as one; ValueError when the machines differ."""
    first = contents[0]
    merged = {**first, "rows": [], "models": [], "peaks": {"matmul_tflops": {}}}
    for content in contents:
        for field in ("machine", "gpu"):
            name = "cpu" if field == "machine" else "name"
            if (content[field] or {}).get(name) != (first[field] or {}).get(name):
                raise ValueError(f"the files are of different machines: {field} differs")
        merged["rows"] += content["rows"]
        merged["models"] += content["models"]
        merged["complete"] = merged["complete"] and content["complete"]
        merged["peaks"] = {
            "copy_gbps": merged["peaks"].get("copy_gbps") or content["peaks"].get("copy_gbps"),
            "matmul_tflops": {
                **content["peaks"].get("matmul_tflops", {}),
                **merged["peaks"].get("matmul_tflops", {}),
            },
        }
    return merged


def write(content: dict, folder: Path, name: str = "report.html") -> Path:
    """Write the page and the charts (charts/*.svg, *.png) into a folder; the page's path."""
    figures = charts.draw(content)
    try:
        charts.save_files(figures, Path(folder) / "charts")
        path = Path(folder) / name
        write_atomically(path, render(content, figures))
    finally:
        for figure in figures.values():
            plt.close(figure)
    return path
