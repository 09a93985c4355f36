"""The README's results section, generated from the benchmarks committed under bench/results/."""

from __future__ import annotations

from pathlib import Path

from . import own, ratios, record, show

RESULTS = Path(__file__).resolve().parent / "results"
README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- results:start -->", "<!-- results:end -->"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    align = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, align, *rows)]


def _folded(title: str, lines: list[str]) -> list[str]:
    return ["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def _setting(name: str, content: dict) -> str:
    """Hardware, versions, ceilings, commit, day and command of one file."""
    versions, gpu = content["versions"], content["gpu"]
    parts = [show.machine_line(content)]
    if gpu and gpu.get("driver"):
        parts.append(f"driver {gpu['driver']}")
    parts += [f"{key} {versions[key]}" for key in ("triton", "cudnn") if versions.get(key)]
    if commit := versions.get("git_commit"):
        parts.append(f"commit {commit[:12]}")
    link = f"[{name}](bench/results/{name}), `{content['command']}`"
    return f"{' · '.join(parts)} · {content['created'][:10]} ({link})"


def _ours(content: dict, suite: str) -> list[dict]:
    return [
        row
        for row in content["rows"]
        if row["suite"] == suite and row["impl"] in ratios.OURS and row["status"] == "ok"
    ]


def _versus(row: dict, content: dict) -> list[str]:
    rival = ratios.best_rival(row, content["rows"])
    best = f"{show.ratio(rival[1])} ({rival[0]})" if rival else ""
    return [show.ratio(row["ratios"].get(row["baseline"])), best]


def _headlines(content: dict, suite: str) -> list[tuple]:
    """((suite, group, implementation, rival), ratios) of the automatic choice and optimize()."""
    return [
        (group, values)
        for group, values in sorted(ratios.group_ratios(content["rows"]).items())
        if group[0] == suite and group[2] in ratios.OURS and group[3] in HEADLINE
    ]


def _sentence(content: dict, suite: str) -> str:
    """The line that a reader sees: means over all cases, of how many, and how many are lost."""
    device = content["gpu"]["name"] if content["gpu"] else content["machine"]["cpu"]
    mine = [row for row in content["rows"] if row["suite"] == suite]
    rivals = sorted({row["impl"] for row in mine if not row["ours"] and row["status"] == "ok"})
    parts = []
    for (_, group, impl, rival), values in _headlines(content, suite):
        if not group.startswith("all "):
            continue
        total = sum(
            row["impl"] == impl and group in (f"all {row['dtype']}", f"all {row['dtype']} batch "
                                              f"{row.get('batch')}")
            for row in mine
        )  # fmt: skip
        slower = sum(value < 1 for value in values)
        against = f"the best of {', '.join(rivals)}" if rival == "best rival" else rival
        which = "" if impl == ratios.OURS[0] else ", by `optimize()`"
        parts.append(
            f"{show.ratio(ratios.geometric_mean(values))} against {against}{which} "
            f"({group.removeprefix('all ')}, {len(values)} of {total} cases, "
            f"{show.ratio(min(values))} to {show.ratio(max(values))}, {slower} slower)"
        )
    if suite == "conv":
        parts += [
            f"our own kernels alone {mean.mean:.2f}× ({mean.group}, {len(mean.ratios)} layers without "
            "residual)"
            for mean in own.means(content["rows"])
            if mean.kind == "own" and mean.ratios and "residual" not in mean.group
        ]
    return f"- **{TITLES[suite]}**, {device}: {'; '.join(parts) or 'no case with a speed'}."


def _means(content: dict, suite: str) -> list[str]:
    rows = [
        [*group[1:], str(len(values)), show.ratio(ratios.geometric_mean(values)),
         f"{show.ratio(min(values))}–{show.ratio(max(values))}", str(sum(v < 1 for v in values))]
        for group, values in _headlines(content, suite)
    ]  # fmt: skip
    head = ["group", "implementation", "against", "rows", "geometric mean", "range", "slower"]
    return _table(head, rows)


def _cases(content: dict, suite: str) -> list[str]:
    """Ops and convolution layers, one line each."""
    rows = [
        [row["case"], row.get("chosen", ""), show.number(row["cold"]["median_us"], 4),
         show.number(row["tflops"]) if row["tflops"] else "", show.number(row["gbps"]),
         show.percent(row["share"]), *_versus(row, content)]
        for row in _ours(content, suite)
    ]  # fmt: skip
    head = ["case", "ran on", "µs", "TFLOP/s", "GB/s", "of floor", "vs eager", "vs best rival"]
    return _table(head, rows)


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
    return _table(head, rows)


def _no_speed(content: dict) -> list[str]:
    """Losses, and every row that got no speed, with the reason."""
    lines = []
    if slower := ratios.losses(content["rows"]):
        lines += ["Slower than the best rival, worst first:", ""]
        lines += [f"- {case}: {show.ratio(value)} of {rival}" for case, value, rival in slower]
    refused = [r for r in content["rows"] if r["status"] not in ("ok", "absent", "cut")]
    if refused:
        lines += ["", "Without a speed:", ""]
        lines += [f"- {r['case']}, {r['impl']}: {r['status']}, {r['reason']}" for r in refused]
    missing = ratios.left_out(content["rows"])
    if missing:
        lines += ["", "Not measured:", ""]
        lines += [f"- {name} ({n} rows): {why}" for (name, why), n in missing.items()]
    if cut := content.get("cut"):
        lines += ["", f"Cut by the time limit: {', '.join(cut)}."]
    return lines


HEADLINE = ("best rival", "eager", "compile default")
TITLES = {"conv": "Convolution + bias (+ residual) + ReLU", "ops": "Pool, LRN, residual add, ReLU",
          "models": "Networks, inference", "train": "Networks, training steps"}  # fmt: skip


def section(contents: dict[str, dict]) -> str:
    """The section between the markers, from {file name: content}: a line per suite, the rest folded."""
    heads, details = [], []
    for name, content in sorted(contents.items()):
        for suite, title in TITLES.items():
            if not any(row["suite"] == suite for row in content["rows"]):
                continue
            heads.append(_sentence(content, suite))
            table = _cases if suite in ("conv", "ops") else _networks
            verdicts = own.text(content["rows"]) + ratios.automatic_choice(content["rows"])
            own_lines = [f"- {line}" for line in verdicts]
            notes = [line for note in content.get("notes", ()) for line in (note, "")]
            lines = [
                _setting(name, content), "", *notes, *_means(content, suite), "", *own_lines, "",
                *table(content, suite), "", *_no_speed(content),
            ]  # fmt: skip
            details += _folded(f"{title}: {name}", lines)
    refused = sum(
        row["ours"] and row["status"] not in ("ok", "absent", "cut")
        for content in contents.values()
        for row in content["rows"]
    )
    lines = [
        "## Results",
        "",
        "A rival's time over ours, geometric means: above 1 is faster than the rival. Medians on cold "
        "caches; every output was compared with fp64 on the buffers that were timed.",
        "",
        *heads,
    ]
    if refused:
        lines += [
            "",
            f"{refused} rows of ours have no speed and count nowhere: their output was refused or "
            "their times spread too far. They are listed below, with the reasons.",
        ]
    return "\n".join([*lines, *details])


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
