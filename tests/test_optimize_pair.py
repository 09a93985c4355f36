"""cnnkernels.optimize's pass "pair": a block's last convolution and the next block's first in one op."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels
from cnnkernels.optimize.capture import capture
from cnnkernels.optimize.passes import apply, pair
from cnnkernels.optimize.proof import relative_error
from cnnkernels.tuning import commands

PAIR = torch.ops.cnnkernels.conv2d_add_relu_conv2d_relu.default
X = (2, 16, 6, 6)


class Seam(nn.Module):
    """A bottleneck's end and the next one's beginning; every field of a case changes one thing."""

    def __init__(self, expand=None, reduce=None, relus=(True, True), other=None, order=0):
        super().__init__()
        self.expand = nn.Conv2d(16, 64, 1, **{"bias": False, **(expand or {})})
        self.reduce = nn.Conv2d(64, 16, **{"kernel_size": 1, **(reduce or {})})
        self.widen = nn.Conv2d(16, 64, 1)
        self.relus, self.other, self.order = relus, other, order

    def forward(self, x):
        z = self.widen(x).tanh()  # nothing that takes the sum along
        y = self.expand(x)
        y = y + z if self.order else z + y
        y = y.relu() if self.relus[0] else y
        out = self.reduce(y)
        out = out.relu() if self.relus[1] else out
        if self.other == "unknown weight":
            return F.conv2d(y, torch.sigmoid(z[:1, :, :1, :1]).expand(16, 64, 1, 1)).relu()
        return (y, out) if self.other == "result" else out.mean((2, 3)) + y.mean()


# Fields of Seam, and whether it is a pair.
CASES = {
    "plain": ({}, True),
    "sum turned round": ({"order": 1}, True),
    "both are results": ({"other": "result"}, True),
    "no bias": ({"reduce": {"bias": False}}, True),
    "a bias": ({"expand": {"bias": True}}, True),
    "3x3 next": ({"reduce": {"kernel_size": 3, "padding": 1}}, False),
    "stride next": ({"reduce": {"stride": 2}}, False),
    "padding next": ({"reduce": {"padding": 1}}, False),
    "groups next": ({"reduce": {"groups": 4}}, False),
    "groups first": ({"expand": {"groups": 4}}, False),
    "no first ReLU": ({"relus": (False, True)}, False),
    "no second ReLU": ({"relus": (True, False)}, False),
    "unknown weight": ({"other": "unknown weight"}, False),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pairs_of(fast) -> int:
    return len(fast.plan.net.calls(PAIR))


def check(model, x, monkeypatch, expected: int, tolerance: float):
    """Optimised as on a GPU, the op's reference in the kernel's place: so many pairs, equal."""
    monkeypatch.setattr(pair, "_why_not", lambda *args: None)
    fast = cnnkernels.optimize(model, x, layout="channels_last")
    assert pairs_of(fast) == expected
    y = torch.randn_like(x)
    with torch.no_grad():
        ours, theirs = (torch.utils._pytree.tree_leaves(m(y)) for m in (fast, model))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert relative_error(a, b) < tolerance
    return fast


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("case", CASES)
def test_what_is_a_pair(case, dtype, tolerance, monkeypatch):
    options, is_pair = CASES[case]
    model = Seam(**options).eval().to(dtype)
    fast = check(model, torch.randn(X, dtype=dtype), monkeypatch, int(is_pair), tolerance)
    assert sum(kind.endswith(pair.KIND) for kind, _ in fast.report.fused) == is_pair


def bottlenecks(name: str, variant: str) -> nn.Module:
    model = cnnkernels.models.create(name, variant).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(m.weight, 0.4, 0.6)  # 50 residual blocks must not overflow
    return model


def test_resnet50(monkeypatch):
    """15 seams lie between 16 blocks."""
    model = bottlenecks("resnet50", "torchvision")
    fast = check(model, torch.randn(1, 3, 32, 32), monkeypatch, 15, 1e-4)
    seams = [shapes_of(node) for node in fast.plan.net.calls(PAIR)]
    assert seams == [
        *[(64, 256, 64)] * 2, (64, 256, 128), *[(128, 512, 128)] * 3, (128, 512, 256),
        *[(256, 1024, 256)] * 5, (256, 1024, 512), *[(512, 2048, 512)] * 2,
    ]  # fmt: skip
    layers = [layers for kind, layers in fast.report.fused if kind.endswith(pair.KIND)]
    assert layers[0].startswith("layer1.0") and layers[0].endswith("layer1.1.relu")


def shapes_of(node) -> tuple[int, int, int]:
    _, weight, _, next_weight, *_ = node.args
    k1, c = weight.meta["val"].shape[:2]
    return c, k1, next_weight.meta["val"].shape[0]


@pytest.mark.skipif(
    not os.environ.get("CNNKERNELS_SLOW"), reason="half a minute; CNNKERNELS_SLOW=1 runs it"
)
@pytest.mark.parametrize("name, variant, expected", [
    ("resnet152", "torchvision", 49), ("resnet50", "paper", 12), ("resnet18", "torchvision", 0),
])  # fmt: skip
def test_other_resnets(name, variant, expected, monkeypatch):
    check(bottlenecks(name, variant), torch.randn(1, 3, 32, 32), monkeypatch, expected, 1e-4)


def test_what_keeps_a_seam_in_two():
    """The pass as it runs on a GPU; nothing is computed."""

    def left(model, dtype=torch.float32, optional=("pair",), device="cuda"):
        net = capture(model.eval(), (torch.randn(X),), {}, dtype).net
        net.device = torch.device(device)
        apply(net, optional)
        (reason,) = [why for _, why in net.report.left if pair.KIND in why] or [None]
        assert len(net.calls(PAIR)) == (reason is None)
        return reason

    assert left(Seam()) is None
    assert left(Seam(), torch.bfloat16) is None
    assert "passes=['pair'] turns it on" in left(Seam(), optional=())
    assert "no cpu kernel" in left(Seam(), device="cpu")
    assert "no kernel in float64" in left(Seam(), torch.float64)
    odd = Seam()
    odd.reduce = nn.Conv2d(64, 24, 1)
    assert "K2 is 24" in left(odd)
    two = Seam(other="result")
    two.forward = lambda x: F.relu(two.reduce(Seam.forward(two, x)[0])) + 1
    assert left(two) is None  # of two reductions one is taken


def test_tune_finds_pairs_and_their_parts(monkeypatch):
    monkeypatch.setattr(pair, "_why_not", lambda *args: None)
    ops = [call.op for call in commands.capture(Seam().eval(), torch.randn(X), torch.float32)]
    parts = ops[: ops.index(PAIR._opname)]
    assert {"conv2d_add_relu", "conv2d_relu"} <= set(parts)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    model = bottlenecks("resnet50", "torchvision").to("cuda")
    x = torch.randn(16, 3, 224, 224, device="cuda")
    fast = cnnkernels.optimize(model, x, dtype=dtype, passes=["pair"])
    assert fast.report.reason is None and pairs_of(fast) == 15
    with torch.no_grad():
        for batch in (16, 1, 7):
            y = torch.randn(batch, 3, 224, 224, device="cuda")
            assert relative_error(fast(y), model(y)) < (5e-2 if dtype == torch.bfloat16 else 1e-2)
    if torch.cuda.get_device_capability()[0] >= 9:
        fast.plan.program.trace([x.to(dtype)])
        chosen = [how for _, how in fast.plan.program.choices if how.startswith(PAIR._opname)]
        assert any(how.endswith("triton") for how in chosen)
        assert any(how.endswith("reference") for how in chosen)  # wide ones are held back
