"""Every op: torch's own checks of its registration, and the rules of the dispatcher."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import cnnkernels
from cnnkernels import tuning
from cnnkernels.ops import _op


def test_every_op_has_a_reference_that_always_runs():
    for name, op in _op.OPS.items():
        assert list(op.impls)[-1] == "reference", name
        assert op.impls["reference"].default, name


def test_use_prefers_and_explains():
    x = torch.randn(2, 3, 4, 4)
    with cnnkernels.use("reference"):
        (decision,) = cnnkernels.explain(cnnkernels.add_relu, x, x)
    assert (decision.chosen, decision.source) == ("reference", "forced")
    with cnnkernels.use("cudnn"):
        (decision,) = cnnkernels.explain(cnnkernels.add_relu, x, x)
    assert decision.chosen == "cpu" and "no cudnn implementation" in decision.rejected["cudnn"]
    assert "not cuda: the input is on cpu" in str(decision)
    with pytest.raises(RuntimeError, match="backend 'cuda' was asked for"):
        with cnnkernels.use("cuda", strict=True):
            cnnkernels.add_relu(x, x)


def test_bad_backend_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="backend is 'tpu'; allowed are auto"):
        with cnnkernels.use("tpu"):
            pass
    monkeypatch.setenv("CNNKERNELS_BACKEND", "fast")
    with pytest.raises(ValueError, match="CNNKERNELS_BACKEND is 'fast'"):
        cnnkernels.add_relu(torch.ones(1), torch.ones(1))


def test_environment_variable_forces(monkeypatch):
    monkeypatch.setenv("CNNKERNELS_BACKEND", "reference")
    (decision,) = cnnkernels.explain("add_relu", torch.ones(3), torch.ones(3))
    assert decision.chosen == "reference"


def test_explain_sees_every_op_of_a_model():
    x = torch.randn(1, 2, 4, 4)
    decisions = cnnkernels.explain(lambda t: cnnkernels.add_relu(cnnkernels.add_relu(t, t), t), x)
    assert [d.op for d in decisions] == ["add_relu", "add_relu"]


def test_damaged_table_is_reported_and_ignored(tmp_path):
    for content in ["{", json.dumps({"schema": 99, "entries": {}}), json.dumps([1])]:
        path = tmp_path / f"{hash(content)}.json"
        path.write_text(content)
        with pytest.warns(UserWarning, match="ignored"):
            assert tuning._table(path) == {}


def test_flops_are_counted():
    x = torch.randn(2, 3, 4, 4)
    with FlopCounterMode(display=False) as counter:
        cnnkernels.add_relu(x, x)
    assert counter.get_total_flops() == x.numel()


def opcheck_cases():
    """(op, arguments) of every test module that has ``opcheck_cases()``: an op's own test module
    gives its cases."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem != Path(__file__).stem and "\ndef opcheck_cases" in path.read_text():
            yield from importlib.import_module(path.stem).opcheck_cases()


CASES = list(opcheck_cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_opcheck(case):
    name, args = case
    torch.library.opcheck(_op.OPS[name].overload, args)


def test_every_op_is_opchecked():
    missing = set(_op.OPS) - {name for name, _ in CASES}
    assert not missing, f"no opcheck_cases() in any test module yields {sorted(missing)}"
