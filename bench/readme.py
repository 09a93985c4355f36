"""The README's results section, generated from the benchmarks committed under bench/results/."""

from __future__ import annotations

from pathlib import Path

from . import record, show

RESULTS = Path(__file__).resolve().parent / "results"
README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- results:start -->", "<!-- results:end -->"
OURS = ("cnnkernels", "cnnkernels optimized")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    align = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, align, *rows)]


def _setting(content: dict) -> str:
    """Hardware, versions, ceilings, commit and day of one file."""
    versions, gpu = content["versions"], content["gpu"]
    parts = [show.machine_line(content)]
    if gpu and gpu.get("driver"):
        parts.append(f"driver {gpu['driver']}")
    parts += [f"{name} {versions[name]}" for name in ("triton", "cudnn") if versions.get(name)]
    if commit := versions.get("git_commit"):
        parts.append(f"commit {commit[:12]}")
    parts.append(content["created"][:10])
    return " · ".join(parts)


def _ours(content: dict, suite: str) -> list[dict]:
    return [
        row
        for row in content["rows"]
        if row["suite"] == suite and row["impl"] in OURS and row["status"] == "ok"
    ]


def _versus(row: dict, content: dict) -> list[str]:
    rival = show.best_rival(row, content["rows"])
    best = f"{show.ratio(rival[1])} ({rival[0]})" if rival else ""
    return [show.ratio(row["ratios"].get(row["baseline"])), best]


def _means(content: dict, suite: str) -> list[str]:
    rows = []
    for group, values in sorted(show.group_ratios(content["rows"]).items()):
        if group[0] != suite or group[2] not in OURS:
            continue
        mean, slower = show.geometric_mean(values), sum(value < 1 for value in values)
        rows.append(
            [group[1], group[2], group[3], str(len(values)), show.ratio(mean),
             f"{show.ratio(min(values))}–{show.ratio(max(values))}", str(slower)]
        )  # fmt: skip
    head = ["group", "implementation", "against", "rows", "geometric mean", "range", "slower"]
    return _table(head, rows) if rows else []


def _conv(content: dict) -> list[str]:
    rows = [
        [row["case"], row.get("chosen", ""), show.number(row["cold"]["median_us"], 4),
         show.number(row["tflops"]), show.percent(row["share"]), *_versus(row, content)]
        for row in _ours(content, "conv")
    ]  # fmt: skip
    head = ["layer", "ran on", "µs", "TFLOP/s", "of floor", "vs eager", "vs best rival"]
    return _folded("Convolution layers", head, rows)


def _ops(content: dict) -> list[str]:
    rows = [
        [row["case"], show.number(row["cold"]["median_us"], 4), show.number(row["gbps"]),
         show.percent(row["share"]), *_versus(row, content)]
        for row in _ours(content, "ops")
    ]  # fmt: skip
    head = ["op", "µs", "GB/s", "of copy", "vs eager", "vs best rival"]
    return _folded("Memory-bound ops", head, rows)


def _networks(content: dict, suite: str) -> list[str]:
    rows = []
    for row in _ours(content, suite):
        us, used, peak = row["cold"]["median_us"], row.get("energy"), row.get("peak_bytes")
        rows.append(
            [row["model"], row["impl"], str(row["batch"]), f"{row['dtype']} {row['layout']}",
             show.number(us / 1e3 / row["batch"]), show.number(row["batch"] / us * 1e6),
             show.percent(row["share"]), *_versus(row, content),
             "n/a" if peak is None else show.number(peak / 2**20),
             show.number(used["joules_per_image"]) if used else "n/a"]
        )  # fmt: skip
    head = ["network", "implementation", "batch", "precision", "ms/image", "images/s", "of floor",
            "vs eager", "vs best rival", "MiB peak", "J/image"]  # fmt: skip
    return _folded("Networks" if suite == "models" else "Training steps", head, rows)


def _folded(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    return ["", f"<details><summary>{title}: {len(rows)} rows</summary>", "",
            *_table(head, rows), "", "</details>"]  # fmt: skip


def _refused(content: dict) -> list[str]:
    refused = [r for r in content["rows"] if r["status"] in ("wrong", "impossible", "failed")]
    if not refused:
        return []
    lines = [f"- {r['case']}, {r['impl']}: {r['status']}, {r['reason']}" for r in refused]
    return ["", f"{len(refused)} rows have no speed:", "", *lines]


TITLES = {"conv": "Convolution + bias (+ residual) + ReLU", "ops": "Pool, LRN, residual add, ReLU",
          "models": "Networks, inference", "train": "Networks, training steps"}  # fmt: skip


def section(contents: dict[str, dict]) -> str:
    """The section between the markers, from {file name: content}."""
    lines = [
        "## Results",
        "",
        "Ratios are a rival's time over ours: above 1 is faster than the rival. Medians on cold "
        'caches; every output was compared with fp64 on the buffers that were timed; "of floor" '
        "is the time that the machine's measured ceilings allow over the time taken.",
    ]
    for name, content in sorted(contents.items()):
        for suite, title in TITLES.items():
            if not any(row["suite"] == suite for row in content["rows"]):
                continue
            lines += ["", f"### {title}", ""]
            lines.append(
                f"{_setting(content)} ([{name}](bench/results/{name}), `{content['command']}`)"
            )
            lines += ["", *_means(content, suite)]
            tables = {"conv": _conv, "ops": _ops}
            lines += tables[suite](content) if suite in tables else _networks(content, suite)
        slower = show.losses(content["rows"])
        if slower:
            lines += ["", f"Slower than the best rival: {'; '.join(slower)}."]
        lines += _refused(content)
    return "\n".join(lines)


def updated(text: str, contents: dict[str, dict]) -> str:
    """A README's text with the section replaced; ValueError when the markers are missing."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(
            f"the README needs the markers {START} and {END}, once each, in this order"
        )
    before, rest = text.split(START)
    after = rest.split(END)[1]
    body = f"\n{section(contents)}\n" if contents else "\n"
    return f"{before}{START}{body}{END}{after}"


def load_results(folder: Path = RESULTS) -> dict[str, dict]:
    """{file name: content} of every committed benchmark."""
    return {path.name: record.load(path) for path in sorted(folder.glob("*.json"))}


def update(readme: Path = README, results: Path = RESULTS, check: bool = False) -> bool:
    """Rewrite the README's section; with ``check`` only say whether it is up to date."""
    old = readme.read_text()
    new = updated(old, load_results(results))
    if not check and new != old:
        record.write_atomically(readme, new)
    return new == old
