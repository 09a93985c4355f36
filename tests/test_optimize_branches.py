"""cnnkernels.optimize on branches: one convolution for several, slices of a concatenation, shortcuts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels
from cnnkernels.optimize import slices
from cnnkernels.optimize.capture import capture
from cnnkernels.optimize.passes import OPTIONAL, merge, projection
from cnnkernels.optimize.plan import Plan
from cnnkernels.optimize.proof import relative_error

ours = torch.ops.cnnkernels
X = (2, 3, 9, 9)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def unit(cin: int, cout: int, kernel: int) -> nn.Module:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


class Inception(nn.Module):
    def __init__(self, cin: int = 8, widths=(4, 5, 6, 3, 7, 2)):
        super().__init__()
        a, b, c, d, e, f = widths
        self.one, self.pool = unit(cin, a, 1), nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(cin, f, 1))
        self.three = nn.Sequential(unit(cin, b, 1), unit(b, c, 3))
        self.five = nn.Sequential(unit(cin, d, 1), unit(d, e, 5))

    def forward(self, x):
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Dense(nn.Module):
    """Values that several concatenations read."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))

    def forward(self, x):
        parts = [x]
        for conv in self.convs:
            parts.append(conv(F.relu(torch.cat(parts, 1))))
        return torch.cat(parts, 1)


class Tangle(nn.Module):
    """Concatenations in concatenations, parts with other readers, in-place operations around them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.c = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        a, b = F.relu(self.a(x)), self.b(x)
        ab = torch.cat([a, b, F.silu(b * 3, inplace=True), F.relu(x[:, :4], inplace=False)], 1)
        whole = torch.cat([ab, F.relu(x), b * 2], 1)
        end = torch.cat([F.max_pool2d(x, 3, 1, 1), F.relu(self.c(ab))], 1).relu_()
        return whole, end, torch.cat([b, a], 1), ab + 1, a, torch.cat([x, x], 1)


class Pair(nn.Module):
    """One convolution has a bias, one has none; another geometry and another input stay apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.c = nn.Conv2d(8, 4, 3, padding=2, dilation=2)

    def forward(self, x):
        a, b, c = (F.relu(conv(x)) for conv in (self.a, self.b, self.c))
        return a.mean(), b * 2, c


def model_of(kind, *args) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), kind(*args))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return model.eval()


def worst(ours, theirs) -> float:
    leaves = torch.utils._pytree.tree_leaves
    return max(relative_error(a, b) for a, b in zip(leaves(ours), leaves(theirs)))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("kind", [Inception, Dense, Tangle, Pair])
def test_branches_are_equal(kind, layout):
    model = model_of(kind)
    fast = cnnkernels.optimize(model, torch.randn(X), layout=layout, passes=OPTIONAL)
    assert fast.report.reason is None
    for batch in (2, 3, 1, 2):
        x = torch.randn(batch, *X[1:])
        with torch.no_grad():
            expected = model(x)
            first, again = fast(x), fast(x)
        assert worst(first, expected) < 1e-5 and worst(again, first) == 0


def test_what_is_rewritten():
    def counts(kind, **options):
        return cnnkernels.optimize(model_of(kind), torch.randn(X), **options).report.counts()

    merged = f"batch norm folded → {merge.KIND}"
    made = counts(Inception, passes=["merge", "concat"])
    assert made[merged] == 1 and made["branches into concatenation"] == 1
    made = counts(Inception, passes=["concat"])
    assert merged not in made and made["batch norm folded → conv + ReLU"] == 6
    assert counts(Pair, passes=["merge"])[merge.KIND] == 1 and counts(Pair)["conv + ReLU"] == 4
    fast = cnnkernels.optimize(model_of(Inception), torch.randn(X))
    assert any("passes=['merge']" in why for _, why in fast.report.left)
    with pytest.raises(ValueError, match=r"passes is 'merge'; allowed are collections of"):
        counts(Pair, passes="merge")


def test_every_branch_is_written_once_and_nothing_concatenates(monkeypatch):
    model = model_of(Inception)
    fast = cnnkernels.optimize(model, torch.randn(X), layout="channels_last", passes=OPTIONAL)
    places = fast.plan.program.places
    (cat,) = places.owners
    assert sorted(places.slices[p][1:] for p in cat.args[0]) == [(0, 4), (4, 6), (10, 7), (17, 2)]
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    x = torch.randn(X)
    fast(x)
    with Watch():
        fast(x)
    assert "aten::cat" not in seen and seen.count("aten::copy_") == 0
    assert seen.count("aten::clamp_min") == 4 + 0 and seen.count("aten::relu_") == 1
    assert seen.count("aten::relu") == 2  # the merged convolution's other two parts


def test_parts_on_a_gpu_are_views():
    """The GPU's form of the merge, run on the CPU: readers get channel slices of one result."""
    model = model_of(Inception)
    net = capture(model, (torch.randn(X),), {}, None).net
    plan = Plan(model, (torch.randn(X),), {}, dtype=None, layout="channels_last", graph=False)
    plan.net.masters, plan.net.optional = dict(plan.net.masters), {"merge"}
    plan.net.device = torch.device("cuda")
    merge.run(plan.net)
    plan.net.device = net.device
    plan.set_layout("channels_last")
    kinds = [n.target for n in plan.net.graph.nodes if n.op == "call_function"]
    assert (
        kinds.count(torch.ops.aten.slice.Tensor) == 3 and torch.ops.aten.relu.default not in kinds
    )
    x = torch.randn(X)
    with torch.no_grad():
        for _ in range(2):
            assert worst(plan.run_flat([x]), model(x)) < 1e-5


def conv_into(x, weight, bias, residual, stride, padding, dilation, groups, relu, _, out, offset):
    """_conv2d_cuda_out's arguments, in plain PyTorch."""
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    y = y if residual is None else y + residual
    out[:, offset : offset + weight.shape[0]] = y.relu() if relu else y


@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("op", list(slices.RELU), ids=lambda op: op._opname)
def test_a_convolution_writes_its_slice(name, op, monkeypatch):
    """Triton's kernels in its interpreter; of the compiled leaf the call and its arguments."""
    if name == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(ours, "_conv2d_cuda_out", conv_into, raising=False)
    x = torch.randn(2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    weight, bias, z = torch.randn(16, 16, 3, 3), torch.randn(16), torch.randn(2, 16, 6, 6)
    z = z.contiguous(memory_format=torch.channels_last)
    tensors = (x, weight, z, bias) if "add" in op._opname else (x, weight, bias)
    args = (*tensors, [1, 1], [1, 1], [1, 1], 1)
    buffer = torch.full((2, 40, 6, 6), float("nan")).contiguous(memory_format=torch.channels_last)
    slices.into(op, name, None, args)(buffer, 16, *args)
    assert worst(buffer[:, 16:32], op(*args)) < 1e-5
    assert buffer[:, :16].isnan().all() and buffer[:, 32:].isnan().all()


class Projection(nn.Module):
    """A residual block; ``order`` says which of the sum's operands is the shortcut."""

    def __init__(self, stride: int, bottleneck: bool, order: int, bias: bool):
        super().__init__()
        k = 1 if bottleneck else 3
        self.first = nn.Conv2d(8, 4, 3, stride=stride, padding=1)
        self.last = nn.Conv2d(4, 6, k, padding=k // 2, bias=bias)
        self.shortcut = nn.Conv2d(8, 6, 1, stride=stride, bias=bias)
        self.order = order

    def forward(self, x):
        a, b = self.last(F.relu(self.first(x))), self.shortcut(x)
        return F.relu(a + b if self.order else b + a)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("order", [0, 1])
def test_projection_is_more_terms_of_the_last_convolution(stride, bottleneck, order, monkeypatch):
    model = model_of(Projection, stride, bottleneck, order, bool(order))
    x = torch.randn(X)
    left = cnnkernels.optimize(model, x).report.left
    assert [why for _, why in left if projection.KIND in why and "no cpu kernel" in why]
    monkeypatch.setattr(projection, "_why_not", lambda net, add: None)
    fast = cnnkernels.optimize(model, x)
    (node,) = fast.plan.net.calls(ours.conv2d_projection_add_relu.default)
    assert node.args[1].meta["val"].shape[2] == (1 if bottleneck else 3)
    assert node.args[8] == [stride] * 2  # the strided one is the shortcut
    y = torch.randn(3, *X[1:])
    with torch.no_grad():
        assert worst(fast(y), model(y)) < 1e-5
    assert fast.report.counts()[projection.KIND] == 1


def test_a_sum_that_is_no_projection_stays():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=2)

        def forward(self, x):
            c = self.c(x)
            return F.relu(self.a(x) + self.b(x)), F.relu(self.a(x) + self.d(x)), F.relu(c + x) + c

    fast = cnnkernels.optimize(model_of(Sums), torch.randn(X))
    assert not [why for _, why in fast.report.left if projection.KIND in why]


def test_layers_that_pool_are_packed_convolutions_on_a_cpu():
    """conv2d_relu_max_pool2d's convolution is packed as any other, its ReLU pooled along."""
    model = nn.Sequential(
        cnnkernels.nn.Conv2dReLUMaxPool2d(3, 8, 3, padding=1, pool_kernel_size=3, pool_stride=2),
        cnnkernels.nn.Conv2dReLU(8, 8, 3, groups=2), cnnkernels.nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(200, 2048),
    ).eval()  # fmt: skip
    fast = cnnkernels.optimize(model, torch.randn(2, 3, 26, 26))
    names = [n.target._opname for n in fast.plan.net.graph.nodes if n.op == "call_function"
             and n.target.namespace == "cnnkernels"]  # fmt: skip
    assert names == ["conv2d", "relu_max_pool2d"] * 2
    assert [choice for _, choice in fast.report.choices if choice.startswith("linear")]
    assert sum(t.is_mkldnn for t in fast.plan.program.tensors.values()) == 3
    x = torch.randn(5, 3, 26, 26)
    with torch.backends.mkldnn.flags(enabled=False):  # a new shape, chosen without oneDNN
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    x[3, 1, 20, 3] = float("nan")
    torch.testing.assert_close(fast(x[3:]), model(x[3:]), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_weight_that_others_read_stays_as_it_is():
    class Regularised(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.conv(x), x.mean() * self.conv.weight

    model = Regularised().eval()
    fast = cnnkernels.optimize(model, torch.randn(1, 3, 9, 9))
    assert not any(t.is_mkldnn for t in fast.plan.program.tensors.values())
    x = torch.randn(1, 3, 9, 9)
    for value, expected in zip(fast(x), model(x)):
        torch.testing.assert_close(value, expected)


def test_matrix_products_in_bfloat16_are_packed_where_the_processor_has_them():
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 1024), nn.ReLU(), nn.Linear(1024, 7)).eval()
    x = torch.randn(2, 3, 10, 10)
    fast = cnnkernels.optimize(model, x, dtype=torch.bfloat16)
    packed = [t.shape for t in fast.plan.program.tensors.values() if t.is_mkldnn]
    known = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert packed == ([(1024, 300)] if known else [])  # the small one lies in the caches
    torch.testing.assert_close(fast(x).float(), model(x), rtol=3e-2, atol=3e-2)
