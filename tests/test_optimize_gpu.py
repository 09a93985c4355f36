"""cnnkernels.optimize on a GPU: CUDA graphs, 16-bit plans, memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels
from cnnkernels.optimize.passes import OPTIONAL
from cnnkernels.optimize.proof import relative_error

pytestmark = pytest.mark.gpu


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))) + x)


def net(dtype: torch.dtype) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(inplace=True), nn.LocalResponseNorm(5),
        nn.MaxPool2d(3, 2, 1), Residual(64), nn.Conv2d(64, 64, 3, groups=8, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    model[4].bn1.running_var.uniform_(0.5, 2)
    return model.eval().to("cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("graph", [True, False])
def test_equal_at_every_batch(dtype, graph):
    model = net(dtype)
    fast = cnnkernels.optimize(
        model, torch.randn(4, 3, 64, 64, device="cuda", dtype=dtype), graph=graph
    )
    assert fast.report.reason is None and fast.report.layout == "channels_last"
    reference = net(torch.float32)
    reference.load_state_dict(model.state_dict())
    limit = 5e-2 if dtype == torch.bfloat16 else 1e-2
    for batch in (4, 1, 7, 4):
        x = torch.randn(batch, 3, 64, 64, device="cuda", dtype=dtype)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert relative_error(fast(x), reference(x.float())) < limit


def test_results_of_two_calls_are_independent():
    fast = cnnkernels.optimize(net(torch.float32), torch.randn(2, 3, 64, 64, device="cuda"))
    x, y = torch.randn(2, 2, 3, 64, 64, device="cuda")
    first = fast(x)
    kept = first.clone()
    assert not torch.equal(fast(y), kept) and torch.equal(first, kept)


def test_graphs_are_bounded():
    fast = cnnkernels.optimize(net(torch.float32), torch.randn(2, 3, 64, 64, device="cuda"))
    for batch in range(1, 14):
        fast(torch.randn(batch, 3, 64, 64, device="cuda"))
    assert len(fast.plan._prepared) <= 8


class Inception(nn.Module):
    def __init__(self, cin: int):
        super().__init__()
        self.one, self.pool = nn.Conv2d(cin, 64, 1), nn.Conv2d(cin, 32, 1)
        self.reduce, self.three = nn.Conv2d(cin, 96, 1), nn.Conv2d(96, 128, 3, padding=1)
        self.narrow, self.five = nn.Conv2d(cin, 16, 1), nn.Conv2d(16, 32, 5, padding=2)

    def forward(self, x):
        three = F.relu(self.three(F.relu(self.reduce(x))))
        five = F.relu(self.five(F.relu(self.narrow(x))))
        pool = F.relu(self.pool(F.max_pool2d(x, 3, 1, 1)))
        return torch.cat([F.relu(self.one(x)), three, five, pool], 1)


class Projection(nn.Module):
    def __init__(self, cin: int, stride: int):
        super().__init__()
        self.first, self.last = nn.Conv2d(cin, 64, 3, stride, 1), nn.Conv2d(64, 256, 1)
        self.shortcut = nn.Conv2d(cin, 256, 1, stride)

    def forward(self, x):
        return F.relu(self.last(F.relu(self.first(x))) + self.shortcut(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("passes", [["merge"], ["concat"], ["projection"], ["pair"], [*OPTIONAL]])
def test_optional_passes_are_equal(dtype, passes):
    parts = Inception(64), Inception(256), Projection(256, 2), Projection(256, 1)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), *parts).eval().cuda()
    x = torch.randn(4, 3, 28, 28, device="cuda")
    fast = cnnkernels.optimize(model, x, dtype=dtype, passes=passes)
    assert fast.report.reason is None
    if "projection" in passes and torch.cuda.get_device_capability() == (9, 0):
        chosen = [how for _, how in fast.report.choices if "projection" in how]
        assert chosen == ["conv2d_projection_add_relu: cuda"] * 2
    with torch.no_grad():
        for batch in (4, 1, 7, 4):
            x = torch.randn(batch, 3, 28, 28, device="cuda")
            assert relative_error(fast(x), model(x)) < (5e-2 if dtype == torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("passes", [(), [*OPTIONAL]])
def test_peak_memory_is_not_above_eager(passes):
    """Activations, the graph's static buffers and its memory pool; the weights' own copy is left out."""
    parts = Inception(64), Inception(256), Projection(256, 2)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), *parts)
    model = model.eval().to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(64, 3, 56, 56, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)

    def peak(run) -> int:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved() - before

    eager = peak(lambda: model(x))
    small = cnnkernels.optimize(model, x[:1], passes=passes)
    assert small.report.reason is None
    assert peak(lambda: small(x)) <= 1.05 * eager  # captures the graph for this batch
