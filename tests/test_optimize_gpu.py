"""cnnkernels.optimize on a GPU: CUDA graphs, 16-bit plans, memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels
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
