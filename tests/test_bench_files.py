"""Saved benchmarks: valid JSON whatever happens, compare's exit code, the page and its charts."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cnnkernels.bench import compare, record, report
from cnnkernels.bench.measure import Settings
from cnnkernels.cli import main

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def cli(capsys):
    """Runs ``cnnkernels bench ...`` in this process: (exit code, stdout, stderr)."""

    def run(*args):
        with pytest.raises(SystemExit) as exit:
            main(["bench", *map(str, args)])
        captured = capsys.readouterr()
        return SimpleNamespace(
            returncode=exit.value.code or 0, stdout=captured.out, stderr=captured.err
        )

    return run


def ok_row(case, impl, us, ours=True, suite="conv", noise=0.01, **kwargs):
    statistics = {"median_us": us, "p5_us": us, "p95_us": us * 1.1, "noise": noise, "runs": 9}
    return {
        "suite": suite, "case": case, "impl": impl, "ours": ours, "op": "x", "dtype": "bf16",
        "layout": "NHWC", "shape": [1], "device": "cpu", "flops": 10**6, "bytes": 10**6,
        "check": {"ok": True, "error": 1e-3, "worst": 1e-2, "limit": 8e-3, "images": 1, "reason": ""},
        "status": "ok", "cold": statistics, "warm": None, "floor_us": us / 2, "share": 0.5,
        "tflops": 1.0, "gbps": 1.0, "sm_mhz": None, "baseline": "eager", "ratios": {}, **kwargs,
    }  # fmt: skip


def content_of(rows, models=()):
    made = record.Record(None, CPU, Settings(), "test")
    made.content["complete"] = True
    made.add(rows)
    for entry in models:
        made.add_model(entry)
    return made.content


def pair(us, noise=0.01, case="a"):
    rows = [
        ok_row(case, "eager", 100.0, ours=False, noise=noise),
        ok_row(case, "cnnkernels", us, noise=noise),
    ]
    rows[1]["ratios"] = {"eager": 100.0 / us}
    rows[0]["ratios"] = {"cnnkernels": us / 100.0}
    return content_of(rows)


@pytest.fixture
def files(tmp_path):
    def save(**contents):
        paths = []
        for name, content in contents.items():
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(json.dumps(content))
        return paths

    return save


# --- record ----------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "x.json"
    record.write_atomically(path, "old")
    with pytest.raises(TypeError):
        record.write_atomically(path, None)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_record_survives_an_error_and_says_it_is_incomplete(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ZeroDivisionError), record.Record(path, CPU, Settings()) as made:
        made.add([ok_row("a", "eager", 1.0)])
        raise ZeroDivisionError
    saved = record.load(path)
    assert saved["complete"] is False and len(saved["rows"]) == 1
    for field in ("torch", "triton", "git_commit", "python", "cnnkernels"):
        assert field in saved["versions"]
    assert saved["machine"]["cpu"] and saved["machine"]["threads"] >= 1


def test_an_interrupted_run_leaves_valid_json(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnkernels.cli", "bench", "ops", "--only", "add+relu",
         "--batch", "2", "--seconds", "2", "--out", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    path = tmp_path / "ops.json"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and not path.exists():
        time.sleep(0.05)
    assert path.exists(), process.communicate(timeout=10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    saved = record.load(path)
    assert saved["complete"] is False and saved["rows"], err
    assert "interrupted" in err and "add+relu" in out


def test_being_ended_by_a_time_limit_leaves_valid_json_too(tmp_path, capsys):
    """SIGTERM, as timeout(1) sends it."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        with record.Record(tmp_path / "x.json", CPU, Settings()) as made:
            made.add([ok_row("a", "eager", 1.0), ok_row("b", "eager", 1.0)])
            os.kill(os.getpid(), signal.SIGTERM)
            made.add([ok_row("c", "eager", 1.0)])
    assert exit.value.code == 130 and "2 rows measured" in capsys.readouterr().err
    saved = record.load(tmp_path / "x.json")
    assert saved["complete"] is False and len(saved["rows"]) == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_bad_files_are_named(files):
    good = pair(100.0)
    bad_row = copy.deepcopy(good)
    bad_row["rows"][0]["status"] = "fine"
    other = {**good, "schema": "somebody.else/9"}
    for content, message in (
        (other, "schema is 'somebody.else/9'"),
        (bad_row, "row 0 has status 'fine'"),
        ([1], "schema is 'list'"),
        ({**good, "rows": None}, "field 'rows'"),
    ):
        (path,) = files(x=content)
        with pytest.raises(ValueError, match=re.escape(message)):
            record.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        record.load(path)


# --- compare ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "us, noise, code", [(103.0, 0.0, 0), (120.0, 0.0, 1), (120.0, 0.3, 0), (50.0, 0.0, 0)]
)
def test_compare_exit_code(cli, files, us, noise, code):
    old, new = files(old=pair(100.0), new=pair(us, noise))
    result = cli("compare", old, new, "--fail-over", "5%")
    assert result.returncode == code, result.stdout + result.stderr
    assert ("slower" in result.stdout) == (code == 1)


def test_compare_fails_on_a_row_that_broke_and_ignores_rivals(files):
    broken = pair(100.0)
    row = broken["rows"][1]
    broken["rows"][1] = {k: row[k] for k in ("suite", "case", "impl", "ours")}
    broken["rows"][1] |= {"status": "wrong", "reason": "relative error 1"}
    changes = compare.compare(pair(100.0), broken, 0.05)
    assert [c.verdict for c in compare.failures(changes)] == ["broken"]
    slow_rival = pair(100.0)
    slow_rival["rows"][0]["cold"]["median_us"] = 900.0
    changes = compare.compare(pair(100.0), slow_rival, 0.05)
    assert "slower" in [c.verdict for c in changes] and not compare.failures(changes)


def test_relative_comparison_cancels_the_machine():
    slower_machine = pair(200.0)
    slower_machine["rows"][0]["cold"]["median_us"] = 200.0
    assert compare.failures(compare.compare(pair(100.0), slower_machine, 0.05))
    assert not compare.failures(compare.compare(pair(100.0), slower_machine, 0.05, relative=True))


def test_compare_names_bad_arguments(cli, files):
    old, new = files(old=pair(100.0), new=pair(100.0, case="b"))
    for args, message in (
        ((old, new), "no row in common"),
        ((old, old, "--fail-over", "fast"), "--fail-over is 'fast'"),
        ((old, "/nonexistent.json"), "/nonexistent.json"),
    ):
        result = cli("compare", *args)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1


# --- the page --------------------------------------------------------------------------------


def page_content():
    rows, layers = [], []
    for batch, us in ((1, 900.0), (4, 2500.0), (16, 8000.0)):
        names = {"suite": "models", "model": "resnet18", "variant": "paper", "batch": batch}
        case = f"resnet18:paper batch {batch} bf16 NHWC"
        theirs = ok_row(case, "eager", us * 1.5, ours=False, **names)
        mine = ok_row(case, "cnnkernels", us, **names)
        theirs["ratios"], mine["ratios"] = {"cnnkernels": 2 / 3}, {"eager": 1.5}
        mine["peak_bytes"] = batch << 20
        rows += [theirs, mine]
    rows += pair(120.0, case="res/64x56x56x64->64 1x1/1")["rows"]
    rows.append(
        {**{k: rows[-1][k] for k in ("suite", "case", "ours")}, "impl": "cnnkernels cuda",
         "status": "wrong", "reason": "<script>alert(1)</script> relative error 2"}
    )  # fmt: skip
    for index, us in enumerate((30.0, 10.0, 20.0)):
        layers.append(
            {"name": f"layer{index}", "type": "Conv2dReLU", "ours": True, "output": [1, 2], "us": us,
             "flops": 10, "bytes": 10, "error": 1e-3, "eager_us": us, "gflops": 1.0, "gbps": 1.0,
             "floor_us": 1.0, "share": 0.1, "ratio": 1.0}
        )  # fmt: skip
    entry = {
        "model": "resnet18", "variant": "paper", "parameters": 11_700_000, "flops": 3_600_000_000,
        "images": "photographs", "input": [3, 224, 224],
        "layers": [{"batch": 1, "dtype": "bf16", "layout": "NHWC", "rows": layers}],
    }  # fmt: skip
    return content_of(rows, [entry])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report.write(page_content(), tmp_path_factory.mktemp("report"))


class References(HTMLParser):
    """Every URL that a page would load, and its ids."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data") and tag != "a":
                self.loads.append(value)


def test_the_page_is_self_contained(page):
    text = page.read_text()
    parser = References()
    parser.feed(text)
    assert parser.tags.count("svg") == 3 and "link" not in parser.tags and "img" not in parser.tags
    assert all(value.startswith("#") for value in parser.loads), parser.loads
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(parser.ids) == len(set(parser.ids)), "an id is used twice"
    assert {value[1:] for value in parser.loads} <= set(parser.ids)


def test_the_page_escapes_text_and_gives_no_speed_to_a_refused_row(page):
    text = page.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    row = next(line for line in text.split("<tr") if "alert(1)" in line)
    assert row.count("<td") == 3 and "×" not in row


def test_charts_are_written_and_say_what_was_not_measured(page):
    names = {path.name for path in (page.parent / "charts").iterdir()}
    assert names == {
        f"{n}.{k}" for n in ("batch", "operations", "accuracy") for k in ("svg", "png")
    }
    text = page.read_text()
    assert "n/a: not measured on this machine" in text  # energy: no counter was there
    assert "literature accuracies, not measured here" in text and "Zeiler" in text


def test_literature_networks_exist_with_sane_sizes():
    from cnnkernels.bench import charts, literature

    sizes = charts.network_sizes()
    assert len(sizes) == len(literature.ACCURACIES)
    flops, parameters = sizes["resnet50", "torchvision"]
    assert parameters == 25_557_032 and flops == pytest.approx(8.18e9, rel=0.01)


def test_report_refuses_to_mix_machines(cli, files):
    other = pair(100.0)
    other["machine"] = {**other["machine"], "cpu": "another"}
    one, two = files(one=pair(100.0), two=other)
    result = cli("report", one, two)
    assert result.returncode == 2 and "different machines" in result.stderr


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    return None


def test_a_click_sorts_the_table_in_a_browser(page, tmp_path):
    if browser() is None:
        pytest.skip("no Chromium on this machine")
    # The page itself, plus a script that clicks the "µs" head of the layer table twice.
    click = """<script>
      const head = [...document.querySelectorAll('#layers-1 th')].find(h => h.textContent === 'µs');
      const names = () => [...document.querySelectorAll('#layers-1 tbody tr')].map(r => r.cells[0].textContent);
      head.click(); const up = names().join(); head.click(); const down = names().join();
      document.title = up + '|' + down + '|' + head.getAttribute('aria-sort');
    </script></body>"""
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", click))
    result = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=3000", "--dump-dom",
         clicked.as_uri()],
        capture_output=True, text=True, timeout=90, cwd=tmp_path,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", result.stdout)
    assert title, result.stderr[-500:]
    up, down, state = title[1].split("|")
    assert up == "layer1,layer2,layer0" and down == "layer0,layer2,layer1"
    assert state == "descending"
