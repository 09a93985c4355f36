"""torch.compile(model, backend="cnnkernels"), replace_layers, and models under DistributedDataParallel."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels
import cnnkernels.optimize
from cnnkernels.optimize import dynamo
from cnnkernels.optimize.proof import relative_error


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch):
    """What the backend made of each graph: a plan, or "inductor"."""
    made: list = []
    real_plan, real_inductor = dynamo._Compiled, dynamo.inductor

    def compiled(*args):
        made.append(real_plan(*args))
        return made[-1]

    def inductor(module, inputs):
        made.append("inductor")
        return real_inductor(module, inputs)

    monkeypatch.setattr(dynamo, "_Compiled", compiled)
    monkeypatch.setattr(dynamo, "inductor", inductor)
    return made


def net() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.LocalResponseNorm(5),
        nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 5),
    )  # fmt: skip
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def test_backend_is_the_same_function(graphs):
    model = net()
    fast = torch.compile(model, backend="cnnkernels")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for batch in (2, 3, 1, 5):
                x = torch.randn(batch, 3, 14, 14)
                assert relative_error(fast(x), model(x)) < 1e-5
    assert graphs and "inductor" not in graphs
    assert "ReLU + LRN + max-pool" in graphs[0].plan.net.report.counts()


def test_changed_weights_are_seen(graphs):
    model = net()
    fast = torch.compile(model, backend="cnnkernels")
    x = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        before = fast(x)
        model[0].weight.mul_(2)
        after = fast(x)
        assert relative_error(after, model(x)) < 1e-5 and relative_error(after, before) > 1e-2
    assert len(graphs) == 1 and graphs[0] != "inductor"


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_training_goes_to_inductor(graphs):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    fast = torch.compile(model, backend="cnnkernels")
    x = torch.randn(2, 3, 4, 4)
    fast(x).sum().backward()
    assert graphs == ["inductor"]
    expected = copy.deepcopy(model)
    expected.zero_grad()
    expected(x).sum().backward()
    assert torch.allclose(model[0].weight.grad, expected[0].weight.grad, atol=1e-4)


def test_unsupported_graph_goes_to_inductor(graphs, monkeypatch):
    monkeypatch.setattr(
        dynamo, "inductor", lambda module, inputs: graphs.append("inductor") or module
    )

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = F.relu(self.conv(x))
            torch._dynamo.graph_break()
            return torch.fft.rfft2(y).abs().cumsum(1)

    model = Parts().eval()
    fast = torch.compile(model, backend="cnnkernels")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(fast(x), model(x)) < 1e-5
    assert len(graphs) == 2 and graphs[1] == "inductor" and graphs[0] != "inductor"


def test_wrong_rewrite_is_not_used(graphs, monkeypatch):
    from cnnkernels.optimize import passes

    class Wrong:
        @staticmethod
        def run(net):
            for name in net.tensors:
                net.tensors[name] = net.tensors[name] * 1.5

    real = passes.all_passes()
    monkeypatch.setattr(passes, "all_passes", lambda: [*real, Wrong])
    monkeypatch.setattr(dynamo, "inductor", lambda module, inputs: module)
    model = net()
    fast = torch.compile(model, backend="cnnkernels")
    x = torch.randn(2, 3, 14, 14)
    with torch.no_grad(), pytest.warns(UserWarning, match="left to Inductor"):
        assert torch.equal(fast(x), model(x))


def test_options_are_refused():
    with pytest.raises(Exception, match="takes none"):
        torch.compile(net(), backend="cnnkernels", options={"x": 1})(torch.randn(2, 3, 14, 14))


def test_entry_point_names_the_backend():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["torch_dynamo_backends"]["cnnkernels"]
    assert entry == f"{dynamo.__name__}:{dynamo.backend.__name__}"
    assert "cnnkernels" in torch._dynamo.list_backends()


# --- replace_layers --------------------------------------------------------------------------


class Trainable(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Conv2d(8, 8, 1)
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 1), nn.ReLU(), nn.LocalResponseNorm(5),
            shared, nn.ReLU(),
        )  # fmt: skip
        self.again, self.pool = shared, nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.pool(self.again(self.features(x))).flatten(1)


def test_replace_layers_trains_the_same():
    model = Trainable()
    expected = copy.deepcopy(model)
    parameters, names = list(model.parameters()), list(model.state_dict())
    assert cnnkernels.replace_layers(model) is model
    kinds = [type(m).__name__ for m in model.features]
    assert kinds == [
        "Conv2dReLU", "Identity", "MaxPool2d", "Conv2d", "BatchNorm2d", "Identity",
        "ReLUMaxPool2d", "Conv2d", "Identity", "ReLULRN", "Conv2d", "ReLU",
    ]  # fmt: skip
    assert all(type(m).__module__ == "cnnkernels.nn" for m in (model.pool, model.features[2]))
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    x = torch.randn(4, 3, 18, 18)
    for m in (model, expected):
        m(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), expected.parameters()):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(model.buffers(), expected.buffers()):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_replace_layers_keeps_hooks():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2))
    seen = []
    model[0].register_forward_hook(lambda m, args, out: seen.append(out.min().item()))
    model[2].register_forward_hook(lambda m, args, out: seen.append(out.min().item()))
    cnnkernels.replace_layers(model)
    model(torch.randn(2, 3, 4, 4))
    assert type(model[0]) is nn.Conv2d and type(model[2]) is cnnkernels.nn.MaxPool2d
    assert len(seen) == 2 and seen[0] < 0 <= seen[1]  # the first sees values before the ReLU


# --- wrapped for distributed training --------------------------------------------------------


def test_distributed_data_parallel(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(net())
        x = torch.randn(2, 3, 14, 14)
        fast = cnnkernels.optimize(model, x)
        assert fast.report.reason is None
        with torch.no_grad():
            assert relative_error(fast(x), model(x)) < 1e-5
    finally:
        torch.distributed.destroy_process_group()
