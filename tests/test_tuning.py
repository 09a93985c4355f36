"""The measured table: keys, nearest shapes, merging, concurrent writers, damaged files; tuning."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnkernels
from cnnkernels import tuning
from cnnkernels.tuning import keys, space, tables

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user cache, forgotten again afterwards."""
    monkeypatch.setenv("CNNKERNELS_CACHE_DIR", str(tmp_path))
    tuning.forget()
    yield tmp_path
    monkeypatch.undo()
    tuning.forget()


def key_of(n=64, c=256, h=56, k=64, r=1, **kwargs):
    options = dict(dtype=torch.bfloat16, device_type="cpu", channels_last=True) | kwargs
    return tuning.conv_key(
        options["dtype"], options["device_type"], options["channels_last"], (n, c, h, h),
        (k, c, r, r), (1, 1), (r // 2, r // 2), (1, 1), 1,
        options.get("residual", False), options.get("relu", False),
    )  # fmt: skip


def test_keys_are_the_documented_ones():
    key = key_of(residual=True, relu=True)
    assert key == "conv2d/bfloat16/nhwc/64x256x56x56-k64-r1s1-s1-p0-d1-g1-add-relu"
    assert key in tuning.__doc__
    uneven = tuning.conv_key(
        torch.float32, "cpu", False, (1, 6, 5, 4), (9, 2, 3, 1), (2, 1), (0, 3), (1, 1), 3
    )
    assert uneven == "conv2d/float32/nchw/1x6x5x4-k9-r3s1-s2x1-p0x3-d1-g3"


def test_float32_on_a_gpu_is_keyed_by_its_arithmetic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert "/tf32/" in key_of(dtype=torch.float32, device_type="cuda")
    assert "/float32/" in key_of(dtype=torch.float32, device_type="cpu")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert "/float32/" in key_of(dtype=torch.float32, device_type="cuda")


def test_nearest_shape():
    table = [key_of(64), key_of(256), key_of(64, r=3), key_of(64, relu=True)]
    assert keys.nearest(key_of(48), table) == key_of(64)
    assert keys.nearest(key_of(200), table) == key_of(256)
    assert keys.nearest(key_of(64, c=128, relu=True), table) == key_of(64, relu=True)
    assert keys.nearest(key_of(1), table) is None  # too far: the rule decides
    assert keys.nearest(key_of(64, dtype=torch.float16), table) is None
    assert keys.nearest(key_of(64, channels_last=False), table) is None
    assert keys.nearest("max_pool2d/whatever", table) is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=8, unique=True), st.integers(1, 512))
def test_nearest_is_the_least_ratio(batches, wanted):
    found = keys.nearest(key_of(wanted), [key_of(n) for n in batches])
    ratios = {n: max(n / wanted, wanted / n) for n in batches}
    least = min(ratios.values())
    assert (found is None) == (least > 2**keys.FARTHEST)
    if found is not None:
        assert ratios[int(found.split("/")[3].split("x")[0])] == pytest.approx(least)


def test_saved_entries_are_looked_up(cache):
    assert tuning.lookup(key_of(), CPU) is None
    entry = {"impl": "reference", "us": 1.0, "error": 0.0}
    path = tuning.save({key_of(): entry}, CPU)
    tuning.forget()
    assert path.parent.parent == cache and path.stem == tuning.device_name(CPU)
    assert tuning.lookup(key_of(), CPU) == entry
    near = tuning.lookup(key_of(96), CPU)
    assert near["impl"] == "reference" and near["nearest"] == key_of()
    tuning.save({key_of(8): entry | {"impl": "cuda", "config": {"instance": "a"}}}, CPU)
    tuning.forget()
    assert tuning.lookup(key_of(8), CPU)["config"] == {"instance": "a"}
    assert "config" not in tuning.lookup(key_of(9), CPU)  # an instance fits its own shape only


def test_the_users_entries_win_over_shipped_ones(cache, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(tuning, "CONFIGS", shipped)
    both, only = key_of(8), key_of(8, r=3)
    name = f"{tuning.device_name(CPU)}.json"
    tables.save({both: {"impl": "cudnn"}, only: {"impl": "triton"}}, CPU, shipped / name)
    tuning.save({both: {"impl": "reference"}}, CPU)
    tuning.forget()
    assert tuning.lookup(both, CPU)["impl"] == "reference"
    assert tuning.lookup(only, CPU)["impl"] == "triton"


def test_an_op_follows_the_table_and_explains_it(cache):
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(4, 8, 3, 3)
    key = tuning.conv_key(
        x.dtype, "cpu", False, x.shape, weight.shape, (1, 1), (0, 0), (1, 1), 1, False, True
    )
    (before,) = cnnkernels.explain(cnnkernels.conv2d_relu, x, weight)
    tuning.save({key: {"impl": "reference"}}, CPU)
    tuning.forget()
    (after,) = cnnkernels.explain(cnnkernels.conv2d_relu, x, weight)
    assert (before.chosen, before.source) == ("cpu", "rule")
    assert (after.chosen, after.source) == ("reference", "measured table")
    tuning.save({key: {"impl": "cudnn"}}, CPU)  # can't run here: the rule decides, and says why
    tuning.forget()
    (other,) = cnnkernels.explain(cnnkernels.conv2d_relu, x, weight)
    assert other.chosen == "cpu" and "cudnn" in other.rejected


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "Expecting property name"),
        ("[]", "schema 'list'"),
        ({"schema": 99, "entries": {}}, "schema 99, this version reads 1"),
        ({"gpu": "NVIDIA_Another", "entries": {}}, "measured on 'NVIDIA_Another'"),
        ({"entries": []}, "no entries"),
        ({"entries": {"k": {"us": 1}}}, "entry of k names no impl"),
        ({"entries": {"k": {"impl": "triton", "config": [1]}}}, "config of k is not an object"),
    ],
)
def test_an_unusable_table_is_reported_once_and_replaced(cache, content, reason):
    path = tuning.user_table(CPU)
    path.parent.mkdir(parents=True)
    if isinstance(content, dict):
        content = json.dumps({"schema": 1, "gpu": path.stem} | content)
    path.write_text(content)
    with pytest.warns(UserWarning, match=reason):
        assert tuning.lookup(key_of(), CPU) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.lookup(key_of(3), CPU) is None  # not again
    with pytest.warns(UserWarning, match=r"moved to .*\.bad"):
        tuning.save({key_of(): {"impl": "reference"}}, CPU)
    tuning.forget()
    assert tuning.lookup(key_of(), CPU)["impl"] == "reference"
    assert path.with_suffix(".bad").read_text() == content


def test_two_processes_lose_nothing(cache):
    script = (
        "import sys, torch; from cnnkernels import tuning\n"
        "for i in range(20): tuning.save({f'{sys.argv[1]}{i}': {'impl': 'cpu'}},"
        " torch.device('cpu'))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, name], cwd=ROOT) for name in ("a", "b", "c")
    ]
    assert [w.wait(timeout=120) for w in writers] == [0, 0, 0]
    tuning.forget()
    assert len(tuning.entries(CPU)) == 60
    assert sorted(p.suffix for p in tuning.user_table(CPU).parent.iterdir()) == [".json", ".lock"]


def test_reading_a_large_table_takes_under_50_ms(cache):
    entry = {"impl": "triton", "us": 1.0, "config": {"kind": "taps", "box": [2, 8, 8]}}
    tuning.save({key_of(n, c): entry for n in range(1, 11) for c in range(8, 808, 8)}, CPU)
    best = float("inf")
    for _ in range(5):
        tuning.forget()
        start = time.perf_counter()
        assert tuning.lookup(key_of(3, 8), CPU) == entry
        best = min(best, time.perf_counter() - start)
    assert best < 0.05


def test_every_shipped_table_is_usable():
    for path in tuning.CONFIGS.glob("*.json"):
        entries = tables._read(path)
        for key, entry in entries.items():
            assert keys._SHAPE.fullmatch(key), f"{path.name}: {key}"
            assert entry["impl"] in ("cuda", "cudnn", "triton", "cpu", "reference")


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 64), c=st.integers(1, 512), k=st.integers(1, 512), hw=st.integers(1, 64),
    r=st.integers(1, 5), stride=st.integers(1, 4), nhwc=st.booleans(), size=st.sampled_from([2, 4]),
    residual=st.booleans(),    capability=st.sampled_from([80, 89, 90]),
)  # fmt: skip
def test_every_shape_has_configs(n, c, k, hw, r, stride, nhwc, size, residual, capability):
    conv = space.Conv(
        n,
        c,
        hw,
        hw,
        k,
        r,
        r,
        (stride, stride),
        (r // 2, r // 2),
        (1, 1),
        1,
        nhwc,
        size,
        residual,
    )
    configs = space.conv_configs(conv, capability, tf32=size == 4)
    assert configs and configs[-1]["kind"] == "pointer"
    assert len({json.dumps(config) for config in configs}) == len(configs)
    for config in configs:
        if config["kind"] != "pointer":
            assert capability >= 90 and nhwc
            assert space.shared_bytes(conv, config) <= space.SMEM_LIMIT[capability]


def tune(*args):
    """The command in a process of its own, as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "cnnkernels.cli", "tune", *args, "--device", "cpu"],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_tune_records_resumes_and_stops_in_time(cache):
    code, text = tune("lenet5", "--batch", "2", "--minutes", "0")
    assert code == 0 and "3 left: run it again" in text
    code, text = tune("lenet5", "--batch", "2")
    assert code == 0 and "3 recorded in" in text, text
    tuning.forget()
    recorded = tuning.entries(CPU)
    assert len(recorded) == 3
    for key, entry in recorded.items():
        assert key.startswith("conv2d/float32/nhwc/2x")
        assert entry["impl"] in ("cpu", "reference") and entry["us"] > 0
        assert entry["error"] <= 1e-5 and len(entry["rivals"]) == 1
    code, text = tune("lenet5", "--batch", "2")
    assert code == 0 and "0 convolutions to time" in text
    code, text = tune("lenet5", "--layout", "wide")
    assert code != 0 and "--layout is 'wide'; allowed are nhwc, nchw" in text


def test_tuning_drops_a_fast_but_wrong_implementation(cache, monkeypatch):
    from cnnkernels.ops._op import OPS, Impl
    from cnnkernels.tuning import commands

    layer = commands.Layer((2, 4, 6, 6), (8, 4, 3, 3), ((1, 1), (1, 1), (1, 1), 1), relu=True)
    made = torch.zeros(2, 8, 6, 6)
    wrong = Impl("wrong", lambda *args: made, lambda *args: None)
    monkeypatch.setitem(OPS["conv2d_relu"].impls, "wrong", wrong)
    entry = commands.tune_layer(
        layer, CPU, torch.float32, torch.channels_last, limit=1e-5, seconds=0.2
    )
    assert entry["impl"] in ("cpu", "reference") and "wrong" in entry["rivals"]
    for name in ("cpu", "reference", "triton", "cuda", "cudnn"):
        monkeypatch.setitem(
            OPS["conv2d_relu"].impls, name, Impl(name, lambda *args: made, lambda *args: None)
        )
    with pytest.raises(RuntimeError, match="no implementation gave a right result"):
        commands.tune_layer(layer, CPU, torch.float32, torch.channels_last, 1e-5, 0.2)


def test_capture_sees_what_the_fused_network_runs():
    from cnnkernels import models
    from cnnkernels.tuning import commands

    model = models.create("resnet18", device="meta").eval()
    layers = commands.capture(model, torch.empty(2, 3, 224, 224, device="meta"))
    assert len(layers) == 20
    assert sum(layer.op == "conv2d_add_relu" for layer in layers) == 8
    assert sum(layer.op == "conv2d" for layer in layers) == 3  # the projections
    assert layers[0].op == "conv2d_relu" and layers[0].x_shape == (2, 3, 224, 224)
