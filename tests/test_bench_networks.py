"""Networks, layers, training steps, single kernels, memory, energy, and the README's section."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cnnkernels import models
from cnnkernels.bench import (
    energy,
    kernel,
    layerwise,
    measure,
    memory,
    networks,
    ops,
    readme,
    record,
    rivals,
    suite,
    training,
)
from cnnkernels.bench.layers import LAYERS
from cnnkernels.bench.peaks import Peaks
from cnnkernels.cli import main
from cnnkernels.testing import timing

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
QUICK = measure.Settings.quick(max_seconds=0.05, warm=False, max_noise=math.inf)
TINY = ("lenet5", "lenet5_modern", "resnet20_cifar", "inception_bottleneck")


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch):
    """No speed is judged here: flushing a real cache before every run takes a minute."""
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(timing, "_flush_buffer", lambda device: torch.empty(1 << 19))


@pytest.fixture
def peaks():
    made = Peaks(CPU)
    made.copy, made.matmul = 1e15, {"fp32": 1e15, "bf16": 1e15}
    return made


@pytest.fixture(scope="module")
def lenet():
    return networks.build("lenet5_modern", photographs=True)


# --- the rival -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_the_eager_twin_computes_the_same_without_our_ops(name):
    torch.manual_seed(0)
    model = models.create(name).eval()
    twin = rivals.eager_twin(model)
    assert not [m for m in twin.modules() if type(m).__module__ == "cnnkernels.nn"]
    assert list(twin.state_dict()) == list(model.state_dict())
    x = torch.randn(2, *model.input_size)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)


def test_every_layer_of_ours_has_a_twin():
    from cnnkernels import nn as ours

    assert {getattr(ours, name) for name in ours.__all__} == set(rivals.TWINS)


# --- cases -----------------------------------------------------------------------------------


def test_layers_are_the_classic_ones():
    assert len(LAYERS) == 44 and len({layer.label(64) for layer in LAYERS}) == 44
    stem = next(layer for layer in LAYERS if layer.label(64) == "res/64x224x224x3->64 7x7/2")
    assert stem.out_size == (112, 112) and stem.flops(64) == 15_105_785_856
    strided = next(x for x in LAYERS if x.label(64) == "res/64x56x56x256->512 1x1/2")
    # A 1×1 with stride 2 reads every second row and column.
    pixels = 64 * 28 * 28 * 256
    assert strided.read_bytes(64, 2) == 2 * (pixels + 512 * 256 + 512)


def test_flops_by_the_counter_and_a_training_step_is_about_three(lenet):
    # 5×5: 28²·6·25, then 14² → 10²·16·150 and 120·400, then 84·120, 84·10: 2 per product.
    products = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 120 * 400 + 84 * 120 + 84 * 10
    assert lenet.flops == 2 * products
    assert 2 < networks.flops_of(lenet.twin, training=True) / lenet.flops <= 3


@pytest.mark.parametrize("photographs", [True, False])
def test_a_network_is_measured_on_its_images(photographs, peaks):
    network = networks.build("lenet5_modern", photographs)
    assert ("photographs" in network.source) == photographs
    passes = ("merge+concat", "pair")
    case = networks.make_case(network, 3, "fp32", "NHWC", CPU, passes=passes)
    rows = {row["impl"]: row for row in measure.measure(case, QUICK, peaks)}
    optimized = {"cnnkernels optimized", *(f"cnnkernels optimized {name}" for name in passes)}
    assert {"eager", "cnnkernels", *optimized} <= set(rows)
    for row in rows.values():
        assert row["status"] == "ok", row
        assert row["check"]["images"] == 3
    assert rows["cnnkernels"]["ratios"]["eager"] > 0


def test_a_wrong_network_gets_no_speed(lenet, peaks):
    broken = copy.copy(lenet)
    broken.model = copy.deepcopy(lenet.model)
    with torch.no_grad():
        next(broken.model.parameters()).mul_(1.01)
    case = networks.make_case(broken, 2, "fp32", "NHWC", CPU)
    row = next(r for r in measure.measure(case, QUICK, peaks) if r["impl"] == "cnnkernels")
    assert row["status"] == "wrong" and "cold" not in row
    entries = layerwise.measure(broken, 2, "fp32", "NHWC", CPU, peaks, passes=1)
    assert "reason" in entries[0] and "us" not in entries[0]


def test_layers_are_measured_in_place(lenet, peaks):
    entries = layerwise.measure(lenet, 2, "fp32", "NHWC", CPU, peaks, passes=2)
    leaves = [name for name, m in lenet.model.named_modules() if name and not list(m.children())]
    assert [e["name"] for e in entries] == [
        n for n in leaves if "flatten" not in n and "drop" not in n
    ]
    for entry in entries:
        assert "reason" not in entry and entry["us"] > 0 and entry["bytes"] > 0, entry
    matrix = sum(e["flops"] for e in entries if e["type"].startswith(("Conv2d", "Linear")))
    assert matrix == 2 * lenet.flops  # two images


def test_batch_norm_is_calibrated():
    network = networks.build("resnet20_cifar", photographs=False)
    norms = [m for m in network.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(float((m.running_var - 1).abs().max()) > 1e-3 for m in norms)
    with torch.no_grad():
        out = network.model(network.pool[:2])
    assert torch.isfinite(out).all() and float(out.abs().max()) < 1e3


def test_training_steps_are_checked_by_their_gradients(lenet, peaks):
    case = training.make_case(lenet, 4, "fp32", "NHWC", CPU)
    rows = {row["impl"]: row for row in measure.measure(case, QUICK, peaks)}
    assert {row["status"] for row in rows.values()} == {"ok"}, rows
    wrong = training.make_case(lenet, 4, "fp32", "NHWC", CPU)
    bind = wrong.candidates["cnnkernels"].bind

    def detached(x, target):
        return bind(x * 0, target)  # gradients of another batch

    wrong.candidates["cnnkernels"] = type(wrong.candidates["cnnkernels"])(detached, ours=True)
    rows = {row["impl"]: row for row in measure.measure(wrong, QUICK, peaks)}
    assert rows["eager"]["status"] == "ok" and rows["cnnkernels"]["status"] == "wrong"


def test_every_op_of_the_suite_passes_its_check_on_this_machine(peaks):
    for spec in ops.SPECS:
        for phase in ops.PHASES:
            if spec.op not in ops.OPS or (spec.operands == "xb" and phase == "backward"):
                continue
            case = ops.make_case(spec, phase, (2, 8, 9, 9), "fp32", "NHWC", CPU)
            settings = dataclasses.replace(QUICK, max_seconds=0.0, min_rounds=1)
            for row in measure.measure(case, settings, peaks):
                assert row["status"] in ("ok", "absent"), (case.name, row)


# --- memory and energy -----------------------------------------------------------------------


def test_peak_memory_counts_what_is_alive_at_once():
    def two_at_once():
        a = torch.empty(1 << 20)
        b = torch.empty(1 << 20)
        del a
        return torch.empty(1 << 18) + b[: 1 << 18]

    peak = memory.peak_bytes(two_at_once, CPU)
    assert 8 << 20 <= peak < 9 << 20


def test_energy_is_none_and_never_zero_without_a_counter(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert energy.measure(lambda: None, CPU, 1) is None


def test_energy_reads_rapl_and_its_wrap(tmp_path, monkeypatch):
    domain = tmp_path / "intel-rapl:0"
    part = tmp_path / "intel-rapl:0:0"
    for folder, value in ((domain, 900), (part, 5)):
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text("1000\n")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setattr(energy, "MIN_SECONDS", 0.01)
    counter = energy._counter(CPU)
    (domain / "energy_uj").write_text("100\n")
    assert counter.joules() == pytest.approx(200e-6)
    assert energy.measure(lambda: None, CPU, 1) is None  # a counter that does not move


@pytest.mark.parametrize("step", [0.02, 0.1, 0.7])
def test_energy_of_a_gpu_whose_counter_moves_in_steps(monkeypatch, step):
    """300 W, NVML's counter in mJ; 2 ms per run of 4 images: 0.15 J per image."""
    gpu, clock = torch.device("cuda", 0), [0.0]

    def total(handle):
        assert handle == "the handle"
        return int(300_000 * step * int(clock[0] / step)) + 123_456_789

    def run():
        clock[0] += 2e-3

    nvml = SimpleNamespace(nvmlDeviceGetTotalEnergyConsumption=total)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(energy.timing, "nvml_handle", lambda device: "the handle")
    monkeypatch.setattr(energy.timing, "synchronize", lambda device: None)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: clock[0])
    found = energy.measure(run, gpu, images=4)
    assert found["source"] == "NVML" and 1.0 <= found["seconds"] < 2.5
    assert found["watts"] == pytest.approx(300, rel=0.02)
    assert found["joules_per_image"] == pytest.approx(0.15, rel=0.02)


def test_energy_is_na_where_nvml_refuses(monkeypatch):
    def refuses(handle):
        raise RuntimeError("Not Supported")

    nvml = SimpleNamespace(nvmlDeviceGetTotalEnergyConsumption=refuses)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(energy.timing, "nvml_handle", lambda device: "the handle")
    monkeypatch.setattr(energy.timing, "synchronize", lambda device: None)
    assert energy.measure(lambda: None, torch.device("cuda", 0), images=1) is None


# --- one kernel ------------------------------------------------------------------------------


def test_kernel_shapes_and_configs_are_read():
    layer, batch = kernel.parse_conv("res/64x56x48x256->512 3x3/2")
    assert (batch, layer.height, layer.width, layer.channels) == (64, 56, 48, 256)
    assert (layer.filters, layer.kernel, layer.stride, layer.padding) == (512, 3, 2, 1)
    assert kernel.parse_conv("1x227x227x3->96 11x11/4 p0")[0].out_size == (55, 55)
    assert kernel.parse_config("block_m=128, kind=taps") == {"block_m": 128, "kind": "taps"}
    assert kernel.parse_config('{"box": [1, 8, 16]}') == {"box": [1, 8, 16]}


@pytest.mark.parametrize(
    "name, shape, config, message",
    [
        ("conv3d", "1x1x1x1", "", "NAME is 'conv3d'"),
        ("max_pool2d:vulkan", "1x1x1x1", "", "max_pool2d runs on"),
        ("conv2d_relu", "8x8", "", "--shape is '8x8'"),
        ("conv2d_relu", "1x4x4x8->8 3x5/1", "", "only square filters"),
        ("conv2d_relu", "1x2x2x8->8 7x7/1 p0", "", "larger than the padded input"),
        ("max_pool2d", "1x0x8x8", "", "it must be NxCxHxW"),
        ("conv2d_relu:triton", "1x4x4x8->8 1x1/1", "fast", "--config is 'fast'"),
        ("conv2d_relu:cpu", "1x4x4x8->8 1x1/1", "a=1", "cpu takes no config"),
        ("add_relu", "1x8x8x8", "a=1", "add_relu takes no config"),
    ],
)
def test_bad_kernel_arguments_are_named(name, shape, config, message):
    with pytest.raises(ValueError) as error:
        kernel.make_case(name, shape, "fp32", "NHWC", CPU, kernel.parse_config(config))
    assert message in str(error.value)


def test_a_forced_backend_that_cannot_run_is_absent_not_another(peaks):
    case = kernel.make_case("add_relu:cuda", "2x8x8x8", "fp32", "NHWC", CPU)
    rows = {row["impl"]: row for row in measure.measure(case, QUICK, peaks)}
    assert rows["cnnkernels cuda"]["status"] == "absent"
    case = kernel.make_case("add_relu:reference", "2x8x8x8", "fp32", "NHWC", CPU)
    rows = {row["impl"]: row for row in measure.measure(case, QUICK, peaks)}
    assert rows["cnnkernels reference"]["status"] == "ok"


def test_ncu_command_and_counters():
    command = kernel.ncu_command(["conv2d_relu:cuda", "--shape", "1x8x8x8->8 1x1/1"])
    assert command[0] == "ncu" and command[-1] == "--once" and "conv2d_relu:cuda" in command
    text = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","conv","GPU Speed Of Light Throughput","Duration","us","12.3"\n'
        '"0","conv","Launch Statistics","Registers Per Thread","register/thread","168"\n'
        '"1","pool","GPU Speed Of Light Throughput","Duration","us","4"\n'
    )
    assert kernel.parse_ncu(text) == [
        {"kernel": "conv", "time": "12.3 us", "registers": "168 register/thread"},
        {"kernel": "pool", "time": "4 us"},
    ]


# --- the command -----------------------------------------------------------------------------


def test_unknown_networks_are_named():
    for names, message in ((["alexnut"], "'alexnut' is neither"), (["vgg16:caffe"], "'caffe'")):
        with pytest.raises(ValueError, match=message):
            suite.check_names(names)


def test_the_main_job_on_one_network(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["bench", "lenet5_modern", "--quick", "--photographs", "--seconds", "0.05",
              "--out", str(tmp_path)])  # fmt: skip
    out = capsys.readouterr().out
    assert not exit.value.code, out
    saved = record.load(tmp_path / "bench.json")
    assert saved["complete"] and saved["models"][0]["layers"][0]["rows"]
    assert "photographs from" in saved["models"][0]["images"]
    assert f"report: {tmp_path}/report.html" in out.replace("\n", "")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "lenet5_modern" in out and "vs eager" in out
    for row in saved["rows"]:
        used = row.get("energy")
        assert used is None or used["joules_per_image"] > 0, "0 joules were never measured"
        assert all(not isinstance(v, float) or math.isfinite(v) for v in row.values())


# --- the README ------------------------------------------------------------------------------


def test_readme_section_is_generated_between_its_markers(tmp_path, lenet, peaks):
    made = record.Record(tmp_path / "results/a.json", CPU, QUICK, "cnnkernels bench x")
    with made:
        made.add(measure.measure(networks.make_case(lenet, 2, "fp32", "NHWC", CPU), QUICK, peaks))
    page = tmp_path / "README.md"
    page.write_text(f"# head\n{readme.START}\nformer text\n{readme.END}\ntail\n")
    assert not readme.update(page, tmp_path / "results", check=True)
    assert page.read_text().count("former text") == 1
    readme.update(page, tmp_path / "results")
    text = page.read_text()
    assert text.startswith("# head\n") and text.endswith("\ntail\n") and "former text" not in text
    assert "lenet5_modern" in text and torch.__version__ in text and "a.json" in text
    assert readme.update(page, tmp_path / "results", check=True)
    page.write_text("# no markers")
    with pytest.raises(ValueError, match="markers"):
        readme.update(page, tmp_path / "results")


def test_the_readme_is_up_to_date_with_the_committed_results():
    for path in sorted(readme.RESULTS.glob("*.json")):
        json.loads(path.read_text())
    assert readme.update(check=True), "run `cnnkernels bench readme`"


def test_pytest_suites_run():
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-enable",
         "bench/suites/bench_ops.py", "-k", "add and infer and NHWC"],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        "2 passed" in result.stdout and "test_op[add+relu-infer-NHWC-cnnkernels]" in result.stdout
    )
