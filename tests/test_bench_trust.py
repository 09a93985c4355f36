"""What the bench does about disturbed times and time limits, and the means over our own kernels."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from cnnkernels.bench import budget, engines, measure, own, ratios, record, run, show
from cnnkernels.bench.case import Candidate, Case, random_tensor
from cnnkernels.bench.layers import ConvLayer
from cnnkernels.bench.peaks import Peaks
from cnnkernels.testing import timing

CPU = torch.device("cpu")
SETTINGS = measure.Settings(max_seconds=5.0, min_rounds=15, max_rounds=15, warm=False)


@pytest.fixture
def peaks():
    made = Peaks(CPU)
    made.copy = 1e15
    return made


def double_case(name: str, **kwargs) -> Case:
    def twice(x):
        return x + x

    candidates = {"eager": Candidate.of(twice), "cnnkernels": Candidate.of(twice, ours=True)}
    return Case(
        "ops", name, "double", "fp32", "NCHW", (2, 3, 4, 4), CPU,
        lambda g: (random_tensor(g, (2, 3, 4, 4), "fp32"),), candidates, lambda x: 2 * x,
        read_bytes=384, write_bytes=384, **kwargs,
    )  # fmt: skip


class Timer:
    """Stands for the device's timer: 100 us, with a spread while ``disturbed`` says so."""

    def __init__(self, monkeypatch, disturbed):
        self.runs, self.disturbed = 0, disturbed
        self.random = random.Random(0)
        monkeypatch.setattr(timing, "_time_once", self)
        monkeypatch.setattr(timing, "flush_caches", lambda device: None)

    def __call__(self, fn, device, spin):
        self.runs += 1
        seconds = 1e-4 * (self.random.uniform(0.5, 3.0) if self.disturbed(self.runs) else 1.0)
        return (lambda: seconds), fn(), False


def record_of(monkeypatch, peaks, names, disturbed, tmp_path=None):
    Timer(monkeypatch, disturbed)
    made = record.Record(tmp_path and tmp_path / "x.json", CPU, SETTINGS, "test")
    jobs = [run.Job(name, lambda n=name: double_case(n)) for name in names]
    with made:
        run.measure_all(jobs, made, SETTINGS, peaks, "test")
    return made


RUNS = 2 * SETTINGS.max_rounds  # of one case: two candidates


def test_a_disturbed_row_is_measured_again_at_the_end(monkeypatch, peaks):
    made = record_of(monkeypatch, peaks, ("a", "b"), lambda n: n <= RUNS)
    assert [(row["case"], row["status"]) for row in made.rows] == [
        ("a", "ok"), ("a", "ok"), ("b", "ok"), ("b", "ok")
    ]  # fmt: skip
    assert [row.get("remeasured", False) for row in made.rows] == [True, True, False, False]
    assert made.rows[0]["ratios"] == {"cnnkernels": 1.0}


def test_a_row_that_stays_disturbed_gets_no_speed(monkeypatch, peaks, tmp_path):
    made = record_of(monkeypatch, peaks, ("a", "b"), lambda n: not RUNS < n <= 2 * RUNS, tmp_path)
    for row in made.rows[:2]:
        assert row["status"] == "unstable" and "allowed is 5 %" in row["reason"]
        assert row["cold"]["noise"] > 0.05  # the times stay in the file
        assert not {"share", "gbps", "tflops", "ratios"} & row.keys()
    assert [row["status"] for row in made.rows[2:]] == ["ok", "ok"]
    assert {g[1] for g in ratios.group_ratios(made.rows)} == {"all fp32"}
    assert all(len(v) == 1 for v in ratios.group_ratios(made.rows).values())
    with show.console.capture() as capture:
        show.print_content(made.content)
    line = next(x for x in capture.get().splitlines() if x.strip().startswith("a "))
    assert "UNSTABLE" in line and "×" not in line and "100" not in line
    saved = record.load(tmp_path / "x.json")
    assert [row["status"] for row in saved["rows"]] == [row["status"] for row in made.rows]


def test_the_bound_holds_for_older_files_too(monkeypatch, peaks, tmp_path):
    made = record_of(monkeypatch, peaks, ("a",), lambda n: False, tmp_path)
    content = json.loads((tmp_path / "x.json").read_text())
    del content["settings"]["max_noise"]
    content["rows"][0]["cold"]["noise"] = 0.08
    (tmp_path / "x.json").write_text(json.dumps(content))
    rows = record.load(tmp_path / "x.json")["rows"]
    assert [row["status"] for row in rows] == ["unstable", "ok"] and rows[1]["ratios"] == {}
    assert made.rows[1]["ratios"] == {"eager": 1.0}


def test_a_disturbance_meets_both_candidates(monkeypatch):
    """Candidates take turns, so a slow spell of the machine leaves their ratio as it is."""
    Timer(monkeypatch, lambda n: False)
    calls = []

    def time_once(fn, device, spin):
        calls.append(fn())
        slow = 3.0 if 20 < len(calls) <= 44 else 1.0  # most of the run's second half
        seconds = slow * (2e-4 if calls[-1] == "b" else 1e-4)
        return (lambda: seconds), calls[-1], False

    monkeypatch.setattr(timing, "_time_once", time_once)
    times = timing.interleaved(
        {"a": lambda: "a", "b": lambda: "b"}, CPU, min_rounds=30, max_rounds=30, warmup_seconds=0.0
    )
    assert times["b"].median / times["a"].median == pytest.approx(2.0)


def test_a_run_that_starved_the_device_is_repeated_behind_a_longer_spin(monkeypatch):
    spins = []

    def time_once(fn, device, spin):
        spins.append(spin)
        starved = spin < 1e-3
        return (lambda: 1.0 if starved else 1e-5), fn(), starved

    monkeypatch.setattr(timing, "_time_once", time_once)
    monkeypatch.setattr(timing, "flush_caches", lambda device: None)
    monkeypatch.setattr(timing, "_warm_up", lambda *args: {"a": 3e-4})
    outs = []
    times = timing.interleaved(
        {"a": lambda: 1}, CPU, min_rounds=3, max_rounds=3, after_run=lambda n, out: outs.append(out)
    )
    assert times["a"].seconds == (1e-5,) * 3, "a run during which the device waited was counted"
    assert len(spins) == len(outs) == 5 and spins[2] > 1e-3 > spins[1] > spins[0]


# --- time limits -----------------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)


def test_a_budget_is_shared_and_what_is_saved_serves_the_others(monkeypatch):
    clock = Clock(monkeypatch)
    shares = budget.Budget(100.0, 4)
    assert shares.start_case() and shares.left == 25.0
    clock.now = 10.0
    assert shares.start_case() and shares.left == 30.0
    assert shares.settings(SETTINGS, 8).max_seconds == pytest.approx(3.0)
    shares.built("compile", 31.0)
    assert not shares.affords("compile") and shares.affords("another")
    clock.now = 100.0
    assert not shares.start_case()
    unlimited = budget.Budget()
    assert unlimited.start_case() and unlimited.left == math.inf
    assert unlimited.settings(SETTINGS, 8) == SETTINGS


def test_what_the_limit_cuts_is_listed(monkeypatch, peaks):
    clock = Clock(monkeypatch)
    Timer(monkeypatch, lambda n: False)

    def make(name):
        case, built = double_case(name), []

        def compiles_first(x):
            if not built:
                clock.now += 80.0
                built.append(True)
            return x + x

        case.candidates["compile"] = replace(Candidate.of(compiles_first), slow=True)
        return case

    made = record.Record(None, CPU, SETTINGS, "test")
    settings = replace(SETTINGS, min_rounds=3, max_rounds=3)
    jobs = [run.Job(name, lambda n=name: make(n)) for name in ("a", "b", "c")]
    run.measure_all(jobs, made, settings, peaks, "test", seconds=200.0)
    found = [(row["case"], row["status"]) for row in made.rows if row["impl"] == "compile"]
    # "a" takes 80 s of 200: "b" has a share of 60 left, and what it saves lets "c" have it.
    assert found == [("a", "ok"), ("b", "cut"), ("c", "ok")]
    assert "the time limit of 200 s" in next(r for r in made.rows if r["status"] == "cut")["reason"]
    clock.now = 1e6
    run.measure_all(jobs[:1], made, settings, peaks, "test", seconds=0.0)
    assert made.content["cut"] == ["a"]
    with show.console.capture() as capture:
        show.print_content({**made.content, "peaks": {}})
    assert "not measured: compile (" in capture.get() and "1 cases cut" in capture.get()


# --- rivals that are not there ---------------------------------------------------------------


def test_engines_say_why_they_are_absent(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert engines.why_absent("cudnn graph", gpu) == (
        "not installed (pip install nvidia-cudnn-frontend)"
    )
    assert engines.why_absent("tensorrt", CPU) == "needs an NVIDIA GPU"
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    assert engines.why_absent("tensorrt", gpu) is None


def test_an_absent_rival_is_a_row_with_its_reason_and_one_line_of_the_summary(peaks):
    case = double_case("a", absent={"tensorrt": "not installed"})
    rows = measure.measure(case, replace(SETTINGS, max_noise=math.inf), peaks)
    assert rows[-1]["impl"] == "tensorrt" and rows[-1]["status"] == "absent"
    assert ratios.left_out(rows) == {("tensorrt", "not installed"): 1}


# --- our own convolutions --------------------------------------------------------------------


def conv_rows(case, eager, auto, chosen, dtype="bf16", batch=64, residual=False, **others):
    rows = []
    for name, us in {"eager": eager, "cnnkernels": auto, **others}.items():
        impl = name.replace("_", " ")
        row = {
            "suite": "conv", "case": case, "impl": impl, "ours": impl.startswith("cnnkernels"),
            "dtype": dtype, "batch": batch, "residual": residual, "net": "res",
            "status": "ok" if us else "absent", "reason": "does not take it",
        }  # fmt: skip
        if us:
            row["cold"] = {"median_us": us, "noise": 0.0}
        if impl == "cnnkernels":
            row["chosen"] = chosen
        rows.append(row)
    ratios.add_ratios(rows)
    return rows


def test_own_kernels_are_told_from_the_automatic_choice():
    rows = [
        # auto ran our CUDA kernel: it stands for it.
        *conv_rows("a", 100, 50, "cuda", cudnn_fused=80, cnnkernels_triton=100),
        # auto ran cuDNN; our own are slower.
        *conv_rows("b", 100, 40, "cudnn", cudnn_fused=40, cnnkernels_cuda=50,
                   cnnkernels_triton=80, cnnkernels_own=48),
        # no own kernel takes it, and auto does badly.
        *conv_rows("c", 100, 60, "cudnn", cudnn_fused=40, cnnkernels_cuda=None),
        *conv_rows("d", 100, 50, "cuda", dtype="fp16"),
    ]  # fmt: skip
    means = {(m.kind, m.group): m for m in own.means(rows)}
    group = "bf16 batch 64"
    assert means["auto", group].ratios == {"a": 1.6, "b": 1.0, "c": pytest.approx(2 / 3)}
    assert means["cuda", group].ratios == {"a": 1.6, "b": 0.8}
    assert means["own", group].ratios == {"a": 1.6, "b": pytest.approx(40 / 48)}
    assert means["own", group].missing == ["c"] and list(means["own", group].behind) == ["b"]
    assert means["triton", group].mean == pytest.approx((0.8 * 0.5) ** 0.5)
    assert means["auto", "fp16 batch 64"].ratios == {"d": 2.0}
    text = "\n".join(own.text(rows))
    assert "own, bf16 batch 64: 1.155x" in text and "under 0.9: b 0.83" in text


def test_the_fastest_candidate_is_found_and_one_that_refuses_is_not_taken(monkeypatch):
    from cnnkernels.bench import conv

    def refuses(x):
        raise RuntimeError("not this shape")

    x = torch.randn(64, 64)
    found = {"slow": lambda x: [x @ x for _ in range(30)], "fast": lambda x: x, "no": refuses}
    candidates = {name: Candidate.of(fn, ours=True) for name, fn in found.items()}
    assert conv.fastest(candidates, (x,), CPU) == "fast"
    with pytest.raises(RuntimeError, match="not this shape"):
        conv.fastest({"no": candidates["no"]}, (x,), CPU)


def test_the_own_row_runs_on_this_machine(peaks):
    from cnnkernels.bench import conv

    peaks.matmul = {"fp32": 1e15}
    layer = ConvLayer("t", 8, 6, 6, 8, 3, padding=1)
    case = conv.make_case(layer, 2, True, "fp32", "NHWC", CPU, conv.Rivals(own=True))
    settings = replace(SETTINGS, max_rounds=3, min_rounds=1, max_noise=math.inf)
    rows = {row["impl"]: row for row in measure.measure(case, settings, peaks)}
    mine = rows[ratios.BEST_OWN]
    assert mine["status"] == "ok" and mine["ours"] and mine["chosen"] == "cpu"
