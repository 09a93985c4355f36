"""cnnkernels.optimize's pass "split": a merged convolution's first part lands in its concatenation."""

from __future__ import annotations

import pytest
import torch
from test_optimize_branches import Inception, X, model_of, ours, worst
from torch import nn
from torch.nn import functional as F

import cnnkernels
from cnnkernels.optimize import slices
from cnnkernels.optimize.passes import merge
from cnnkernels.optimize.plan import Plan


def conv_split(x, weight, bias, stride, padding, dilation, relu, _, split, *outputs):
    """_conv2d_cuda_split's arguments, in plain PyTorch."""
    first, at, second, second_at = outputs
    y = F.conv2d(x, weight, bias, stride, padding, dilation)
    y = y.relu() if relu else y
    first[:, at : at + split] = y[:, :split]
    second[:, second_at : second_at + y.shape[1] - split] = y[:, split:]


class Beside(nn.Module):
    """Two merged parts that one concatenation reads, the first not at its beginning."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, k, 1) for k in (4, 8, 4))
        self.d = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        a, b, c = (F.relu(conv(x)) for conv in (self.a, self.b, self.c))
        return torch.cat([F.relu(self.d(c)), a, b], 1)


@pytest.mark.parametrize("kind", [(Inception, 8, (4, 5, 6, 3, 8, 2)), (Beside,)], ids=str)
def test_a_merged_convolution_writes_two_tensors(kind, monkeypatch):
    """As on a GPU, with the compiled leaf in plain PyTorch."""
    calls, split = [], slices.split
    monkeypatch.setattr(slices, "split", lambda target, name, args: split(target, "cuda", args))
    monkeypatch.setattr(
        ours, "_conv2d_cuda_split", lambda *args: calls.append(args[8]) or conv_split(*args),
        raising=False,
    )  # fmt: skip
    model = model_of(*kind)
    plan = Plan(model, (torch.randn(X),), {}, dtype=None, layout="channels_last", graph=False)
    device, plan.net.device = plan.net.device, torch.device("cuda")

    def run(*optional):
        plan.net.optional = frozenset(optional)
        merge.run(plan.net)
        plan.net.device = device
        plan.set_layout("channels_last")
        plan.program.packable = {}
        x = torch.randn(X)
        with torch.no_grad():
            for _ in range(2):
                assert worst(plan.run_flat([x]), model(x)) < 1e-5
        return plan.program.places

    places = run("merge", "concat", "split")
    (first,) = places.splits.values()
    assert calls == [first.args[3]] * 2 == [4] * 2  # traced once, run twice
    assert not run("merge", "concat").splits and not run("merge", "split").splits
    assert len(calls) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    """The kernel is called once per module, and the result is what the two passes alone give."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the tensor-core kernels are compiled for sm_90a")
    model = nn.Sequential(
        nn.Conv2d(3, 192, 3, padding=1), nn.ReLU(), Inception(192, (64, 96, 128, 16, 32, 32)),
        Inception(256, (128, 128, 192, 32, 96, 64)),
    ).eval().to("cuda")  # fmt: skip
    x = torch.randn(4, 3, 28, 28, device="cuda")

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    outs = []
    for passes in (["merge", "concat"], ["merge", "concat", "split"]):
        fast = cnnkernels.optimize(model, x, dtype=dtype, passes=passes, graph=False)
        seen: list[str] = []
        with cnnkernels.use("cuda"), torch.no_grad():
            fast.plan._prepared.clear()  # choose again, the compiled kernels
            outs.append(fast(x))
            with Watch():
                fast(x)
        assert seen.count("cnnkernels::_conv2d_cuda_split") == 2 * ("split" in passes)
    with torch.no_grad():
        limit = 5e-2 if dtype == torch.bfloat16 else 1e-2
        assert all(worst(out, model(x)) < limit for out in outs)
