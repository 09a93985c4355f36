"""``cnnkernels tune``: what it captures, times, verifies and records; being killed; the deadline."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import cnnkernels
from cnnkernels import tuning
from cnnkernels.ops._op import OPS, Impl
from cnnkernels.testing import timing
from cnnkernels.tuning import commands

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def tune(*args):
    """The command, in this process."""
    app = typer.Typer()
    commands.register(app)
    result = CliRunner().invoke(app, [*args, "--device", "cpu"])
    return result.exit_code, " ".join(result.output.split()), result.exception


@pytest.mark.slow
def test_tune_records_survives_being_killed_and_stops_in_time(cache):
    code, text, _ = tune("lenet5", "--batch", "2", "--minutes", "0")
    assert code == 0 and "3 of 3 op calls" in text and "3 left: run it again" in text
    command = [sys.executable, "-m", "cnnkernels.cli", "tune", "lenet5", "--batch", "2"]
    with subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT) as running:
        deadline = time.monotonic() + 120
        while not (path := tuning.user_table(CPU)).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        running.kill()
    tuning.forget()
    first = dict(tuning.entries(CPU))
    assert 1 <= len(first) < 3
    code, text, _ = tune("lenet5", "--batch", "2")
    assert code == 0 and f"{3 - len(first)} recorded in" in text, text
    tuning.forget()
    recorded = tuning.entries(CPU)
    assert len(recorded) == 3 and first.items() <= recorded.items()
    for key, entry in recorded.items():
        assert key.startswith("conv2d/float32/")
        assert entry["impl"] in ("cpu", "reference") and entry["us"] > 0
        assert entry["error"] <= 1e-5 and len(entry["rivals"]) == 1
    before = path.read_bytes()
    code, text, _ = tune("lenet5", "--batch", "2")
    assert code == 0 and "0 of 3 op calls to time" in text and path.read_bytes() == before
    code, _, error = tune("lenet5", "--layout", "wide")
    assert code != 0 and "--layout is 'wide'; allowed are nhwc, nchw" in str(error)


def call_of(op, *args):
    return commands.Call(op, (*args, *OPS[op]._defaults[len(args) :]))


X = torch.randn(2, 16, 12, 12).contiguous(memory_format=torch.channels_last)
POOL = [2, 2], [2, 2], [0, 0], [1, 1], False
CALLS = {
    "convolution": call_of("conv2d_relu", X, torch.randn(8, 16, 3, 3)),
    "with residual": call_of("conv2d_add_relu", X, torch.randn(16, 16, 1, 1), X),
    "pooled convolution": call_of(
        "conv2d_relu_max_pool2d", X, torch.randn(8, 16, 3, 3), None, [1, 1], [1, 1], [1, 1], 1, *POOL
    ),
    "pair": call_of(
        "conv2d_add_relu_conv2d_relu", X, torch.randn(16, 16, 1, 1), X, torch.randn(8, 16, 1, 1)
    ),
    "pool": call_of("max_pool2d", X, *POOL),
    "ReLU and pool": call_of("relu_max_pool2d", X.half(), *POOL),
    "LRN": call_of("local_response_norm", X, 5, 1e-2, 0.75, 1.0),
    "bias, ReLU and LRN": call_of("bias_relu_lrn", X, torch.randn(16), 5, 1e-2, 0.75, 1.0),
    "ReLU, LRN and pool": call_of("relu_lrn_max_pool2d", X, 5, 1e-2, 0.75, 1.0, *POOL),
    "addition": call_of("add_relu", X, X),
    "global average": call_of("global_avg_pool2d", X),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_op_is_tuned_and_follows_its_table(call, cache, monkeypatch):
    op = OPS[call.op]
    args = call.tensors(CPU)
    assert [a.shape for a in args if isinstance(a, torch.Tensor)] == [
        a.shape for a in call.args if isinstance(a, torch.Tensor)
    ]
    # A fast implementation with a wrong result, then one with a NaN, must not win.
    right = op.impls["reference"].fn(*args)
    lists = right if isinstance(right, (tuple, list)) else (right,)
    nan = [t.clone() for t in lists]
    nan[-1][-1, -1, -1, -1] = torch.nan
    for made in ([t * 1.05 for t in lists], nan):
        made = made[0] if isinstance(right, torch.Tensor) else made
        wrong = Impl("wrong", lambda *_, made=made: made, lambda *_: None)
        monkeypatch.setitem(op.impls, "wrong", wrong)
        entry = commands.tune_call(call, CPU, 0.05, deadline=float("inf"))
        assert entry["impl"] in ("cpu", "reference") and "wrong" in entry["rivals"], entry
        assert 0 <= entry["error"] <= commands.LIMITS[op.key(args).split("/")[1]]
    monkeypatch.delitem(op.impls, "wrong")
    tuning.save({op.key(args): entry | {"impl": "reference"}}, CPU)
    tuning.forget()
    decision = cnnkernels.explain(op.overload, *args)[0]
    assert (decision.chosen, decision.source) == ("reference", "measured table")


def test_tuning_gives_up_rather_than_record_a_wrong_result(cache, monkeypatch):
    call, made = CALLS["convolution"], torch.zeros(2, 8, 10, 10)
    op = OPS[call.op]
    for name in op.impls:
        monkeypatch.setitem(op.impls, name, Impl(name, lambda *_: made, lambda *_: None))
    monkeypatch.setitem(op.impls, "reference", Impl("reference", op_reference(op), lambda *_: "no"))
    with pytest.raises(RuntimeError, match=r"no implementation gave a right result: .*error 1.00e"):
        commands.tune_call(call, CPU, 0.05, deadline=float("inf"))


def op_reference(op):
    return lambda x, weight, bias, *geometry: torch.conv2d(x, weight, bias, *geometry).relu()


def test_the_rules_choice_stays_unless_clearly_beaten(cache, monkeypatch):
    op, call = OPS["conv2d_relu"], CALLS["convolution"]
    ran = {}

    def interleaved(fns, *args, **kwargs):
        return {key: timing.Timing((ran[key[0]],) * 3) for key in fns}

    monkeypatch.setattr(commands.timing, "interleaved", interleaved)
    for reference, winner in [(0.99, "cpu"), (0.97, "reference"), (1.1, "cpu")]:
        ran.update(cpu=1.0, reference=reference)
        entry = commands.tune_call(call, CPU, 0.05, deadline=float("inf"))
        assert entry["impl"] == winner and op.impls[winner]
    with pytest.raises(commands.OutOfTime):
        commands.tune_call(call, CPU, 0.05, deadline=0.0)


def test_a_lost_gpu_ends_the_run(monkeypatch):
    def synchronize(device):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(commands.timing, "synchronize", synchronize)
    with pytest.raises(commands.DeviceLost, match=r"cpu None: .* illegal memory access"):
        commands.tune_call(CALLS["convolution"], CPU, 0.05, deadline=float("inf"))


def test_an_optimised_network_packs_its_weights_whatever_the_table_says(cache):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    x = torch.randn(2, 3, 9, 9)
    op = OPS["conv2d_relu"]
    key = op.key((x, model[0].weight, model[0].bias, [1, 1], [0, 0], [1, 1], 1))
    tuning.save({key: {"impl": "reference"}}, CPU)  # faster there, with weights laid out each time
    tuning.forget()
    optimised = cnnkernels.optimize(model, x, layout="contiguous")
    assert [choice for _, choice in optimised.report.choices] == ["conv2d_relu: cpu"]
    torch.testing.assert_close(optimised(x), model(x))


def test_capture_sees_what_the_network_runs_plain_and_optimised():
    from cnnkernels import models

    def ops_of(name, *shape):
        model = models.create(name).eval()
        x = torch.empty(*shape).contiguous(memory_format=torch.channels_last)
        calls = commands.capture(model, x, torch.bfloat16)
        tensors = [a for call in calls for a in call.args if isinstance(a, torch.Tensor)]
        assert {t.dtype for t in tensors} == {torch.bfloat16}
        assert {t.shape[0] for call in calls for t in call.args[:1]} == {2}
        return [call.op for call in calls]

    found = ops_of("resnet18", 2, 3, 224, 224)
    assert found.count("conv2d_add_relu") == 8  # optimised
    assert found.count("add_relu") == 8  # plain
    assert "relu_max_pool2d" in found and "global_avg_pool2d" in found
    found = ops_of("alexnet", 2, 3, 227, 227)
    assert found.count("relu_lrn_max_pool2d") >= 2
    chain = found.index("conv2d_relu_max_pool2d")
    assert {"conv2d_relu", "max_pool2d"} <= set(found[:chain])  # its parts, before it
