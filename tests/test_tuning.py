"""The measured table: keys, nearest shapes, merging, concurrent writers, damaged files, reading."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnkernels
from cnnkernels import tuning
from cnnkernels.ops._op import OPS
from cnnkernels.tuning import keys, space, tables

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


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


def test_keys_of_ops_that_are_no_convolutions():
    def key(op, *args):
        return tuning.op_key(op, OPS[op].argument_names, args)

    x = torch.empty(64, 64, 112, 112, device="meta")
    pool = [3, 3], [2, 2], [1, 1], [1, 1]
    floor, ceil = (key("max_pool2d", x, *pool, mode) for mode in (False, True))
    assert floor.endswith("64x64x112x112-kernel_size=3-stride=2-padding=1-dilation=1")
    assert floor in " ".join(tuning.__doc__.split()) and ceil == floor + "-ceil_mode"
    nhwc = x.contiguous(memory_format=torch.channels_last)
    assert "/nhwc/" in key("add_relu", nhwc, nhwc)
    assert key("global_avg_pool2d", x[0].half()) == "global_avg_pool2d/float16/nchw/64x112x112"
    near = key("max_pool2d", x[:48], *pool, False)
    assert keys.nearest(near, [ceil, floor]) == floor
    assert keys.nearest(near.replace("max_", "relu_max_"), [ceil, floor]) is None
    lrn = "local_response_norm/float32/nchw/{}-size=5-alpha=0.0001-beta=0.75-k=1.0"
    assert key("local_response_norm", x, 5, 1e-4, 0.75, 1.0) == lrn.format("64x64x112x112")
    other = lrn.format("64x64x112x112").replace("0.75", "0.5")
    assert keys.nearest(lrn.format("64x96x55x55"), [other]) is None
    assert keys.nearest(lrn.format("64x80x100x100"), [other, floor, lrn.format("64x96x96x96")])


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


def test_a_config_that_is_none_here_is_reported_and_ignored(cache):
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(4, 8, 3, 3)
    op = OPS["conv2d_relu"]
    args = x, weight, None, [1, 1], [0, 0], [1, 1], 1
    good = op.impls["triton"].configs(*args)[-1]
    for config, kept in [(good, good), (good | {"block_m": 7}, None), ({"kind": "taps"}, None)]:
        tuning.save({op.key(args): {"impl": "triton", "config": config}}, CPU)
        tuning.forget()
        (decision,) = cnnkernels.explain(cnnkernels.conv2d_relu, x, weight)  # in the interpreter
        assert (decision.chosen, decision.config) == ("triton", kept)
        assert kept or "not a config for these arguments" in str(decision)


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


READER = """
import sys, time
import torch, cnnkernels
from cnnkernels import tuning
start = time.process_time()  # other work on the machine must not count
known = tuning.lookup(sys.argv[1], torch.device("cpu"))
seconds = time.process_time() - start
unknown = tuning.lookup(sys.argv[2], torch.device("cpu"))
x, weight = torch.randn(2, 8, 9, 9), torch.randn(4, 8, 3, 3)
(decision,) = cnnkernels.explain(cnnkernels.conv2d_relu, x, weight)
tuned = [m for m in sys.modules if m.startswith(("cnnkernels.tuning.commands", "cnnkernels.testing"))]
print(known["impl"], unknown["nearest"], seconds, decision.chosen, decision.source, tuned, sep="|")
"""


def test_a_fresh_process_reads_a_large_table_in_under_50_ms_and_tunes_nothing(cache):
    entry = {
        "impl": "triton", "us": 1.0, "error": 1e-3, "rivals": {"cudnn": 2.0, "cuda": 3.0},
        "config": {"kind": "taps", "box": [2, 8, 8], "block_n": 128, "block_k": 64, "split": 1,
                   "num_warps": 8, "num_stages": 3, "programs": 132, "flatten": True},
    }  # fmt: skip
    table = {key_of(n, c): entry for n in range(1, 51) for c in range(8, 808, 8)}
    x, weight = torch.empty(2, 8, 9, 9), torch.empty(4, 8, 3, 3)
    here = tuning.conv_key(x.dtype, "cpu", False, x.shape, weight.shape, (1, 1), (0, 0), (1, 1), 1,
                           relu=True)  # fmt: skip
    path = tuning.save(table | {here: {"impl": "reference"}}, CPU)
    before = path.read_bytes(), path.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-c", READER, key_of(3, 8), key_of(3, 8, h=50)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    known, near, seconds, chosen, source, tuned = done.stdout.strip().split("|")
    assert (known, near, tuned) == ("triton", key_of(3, 8), "[]")
    assert (chosen, source) == ("reference", "measured table")
    assert float(seconds) < 0.05
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)


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
