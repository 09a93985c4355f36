"""cnnkernels.optimize: the rewrites one by one, refusals, and everything a model may do."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cnnkernels
from cnnkernels.optimize import NotEqual, passes
from cnnkernels.optimize.proof import relative_error


def randomised(model: nn.Module) -> nn.Module:
    """Batch-norm statistics and weights that a folding mistake can't survive."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return model.eval()


def check(model, x, tolerance: float = 1e-5, **options):
    """Optimise, compare on inputs that optimize() has not seen, return the optimised model."""
    fast = cnnkernels.optimize(model, x, **options)
    assert fast.report.reason is None, fast.report.reason
    y = torch.randn_like(x)
    with torch.no_grad():
        assert relative_error(fast(y), model(y)) < tolerance
    return fast


class Block(nn.Module):
    """A residual block; ``project`` puts a convolution on the shortcut."""

    def __init__(self, channels: int = 8, project: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, channels, 1) if project else nn.Identity()

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.project(x)
        return F.relu(out)


def stem() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]


def targets(fast) -> list[str]:
    return [
        n.target._opname
        for n in fast.plan.net.graph.nodes
        if getattr(n.target, "namespace", "") == "cnnkernels"
    ]


X = (2, 3, 16, 16)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors here are small: a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CHAINS = {
    "conv": ([nn.Conv2d(3, 8, 3)], ["conv2d"]),
    "conv+bn+relu": (stem(), ["conv2d_relu"]),
    "relu+pool": ([*stem(), nn.MaxPool2d(3, 2, 1)], ["conv2d", "relu_max_pool2d"]),
    "pool": ([nn.MaxPool2d(3, 2, ceil_mode=True)], ["max_pool2d"]),
    "lrn": ([nn.LocalResponseNorm(5)], ["local_response_norm"]),
    "relu+lrn": ([*stem(), nn.LocalResponseNorm(4, 1e-2, 0.5, 2.0)], ["conv2d", "relu_lrn"]),
    "relu+lrn+pool": (
        [*stem(), nn.LocalResponseNorm(5, 1e-2), nn.MaxPool2d(3, 2)],
        ["conv2d", "relu_lrn_max_pool2d"],
    ),
    "pool+lrn": (
        [*stem(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5, 1e-2)],
        ["conv2d", "relu_max_pool2d", "local_response_norm"],
    ),
    "residual": ([*stem(), Block()], ["conv2d_relu", "conv2d_relu", "conv2d_add_relu"]),
    "projection": (
        [*stem(), Block(project=True)],
        ["conv2d_relu", "conv2d_relu", "conv2d", "conv2d_add_relu"],
    ),
    "average": ([*stem(), nn.AdaptiveAvgPool2d(1)], ["conv2d_relu", "global_avg_pool2d"]),
    "grouped": ([nn.Conv2d(3, 9, 3, groups=3), nn.ReLU()], ["conv2d_relu"]),
    "same": ([nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU()], ["conv2d_relu"]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chain_is_fused_and_equal(name):
    layers, expected = CHAINS[name]
    model = randomised(nn.Sequential(*copy.deepcopy(layers)))
    fast = check(model, torch.randn(X))
    assert sorted(targets(fast)) == sorted(expected)


def test_one_way_same_padding_stays_torch():
    fast = check(nn.Conv2d(3, 8, 2, padding="same").eval(), torch.randn(X))
    assert "one row or column more" in fast.report.left[0][1]


def test_mean_is_a_global_average():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x.mean([-1, -2], keepdim=True)

    model = Mean().eval()
    fast = cnnkernels.optimize(model, torch.randn(X))
    assert targets(fast) == ["global_avg_pool2d"] * 2
    x = torch.randn(X)
    for ours, theirs in zip(fast(x), model(x)):
        assert ours.shape == theirs.shape and relative_error(ours, theirs) < 1e-6


def test_division_that_is_not_lrn_stays():
    class Almost(nn.Module):
        def forward(self, x):
            mean = F.avg_pool3d(
                F.pad((x * x).unsqueeze(1), (0, 0, 0, 0, 2, 2)), (5, 1, 1), stride=1
            )
            return x / (mean.squeeze(1) * 1e-4 + 1) ** 0.75, x.flip(1) / x.exp()

    model = Almost().eval()
    fast = cnnkernels.optimize(model, torch.randn(X))
    assert targets(fast) == ["local_response_norm"]

    class Shifted(nn.Module):  # the window lies otherwise
        def forward(self, x):
            mean = F.avg_pool3d(
                F.pad((x * x).unsqueeze(1), (0, 0, 0, 0, 1, 3)), (5, 1, 1), stride=1
            )
            return x / (mean.squeeze(1) * 1e-4 + 1) ** 0.75

    assert targets(cnnkernels.optimize(Shifted().eval(), torch.randn(X))) == []


def test_user_model_is_untouched():
    model = randomised(nn.Sequential(*stem(), Block(), nn.MaxPool2d(2)))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {k: (t, t.clone(), t.stride(), t.data_ptr(), t._version) for k, t in tensors.items()}
    modules = list(model.modules())
    fast = cnnkernels.optimize(model, torch.randn(X), dtype=torch.bfloat16)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(model.modules()) == modules and before.keys() == after.keys()
    for name, (tensor, value, strides, pointer, version) in before.items():
        assert after[name] is tensor and torch.equal(tensor, value), name
        assert (tensor.stride(), tensor.data_ptr(), tensor._version) == (strides, pointer, version)
    # And a later change of the model does not reach the optimised one.
    x = torch.randn(X)
    expected = fast(x)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(fast(x), expected)


def test_shared_module_and_functional_calls():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            for _ in range(3):
                x = self.relu(self.bn(self.conv(x)))
            x = F.conv2d(x, self.conv.weight, None, padding=1)
            return F.dropout(F.max_pool2d(F.relu(x), 2), training=self.training)

    fast = check(randomised(Shared()), torch.randn(X))
    assert targets(fast).count("conv2d_relu") == 3
    weights = {id(fast.plan.program.tensors[n.args[1].target])
               for n in fast.plan.net.graph.nodes
               if getattr(n.target, "_opname", "") == "conv2d_relu"}  # fmt: skip
    assert len(weights) == 1  # folded once, held once


def test_convolution_read_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    fast = check(randomised(Twice()), torch.randn(X))
    assert "only it reads" in str(fast.report.left)


def test_residual_used_again_after_the_sum():
    class Reuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            a = self.a(x)
            out = F.relu(self.b(a) + a, inplace=True)
            return out * a, self.b(a) + self.b(a), a + a

    model = Reuse().eval()
    fast = cnnkernels.optimize(model, torch.randn(X))
    x = torch.randn(X)
    for ours, theirs in zip(fast(x), model(x)):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["base", "view", "input", "slice"])
def test_in_place_operations_are_respected(kind):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            if kind == "input":
                return F.relu_(x) + 1
            y = self.conv(x)
            if kind == "base":  # y is written: both reads see it
                z = F.relu_(y)
                return y + z
            if kind == "view":
                v = y.flatten(1)
                y.mul_(2)
                return v
            y[:, :2] += 1
            return y

    model = InPlace().eval()
    fast = cnnkernels.optimize(model, torch.randn(X))
    x = torch.randn(X)
    assert torch.allclose(fast(x.clone()), model(x.clone()), atol=1e-6)
    assert (fast.report.reason is None) == (kind == "base")


def test_dynamic_batch_and_other_sizes():
    model = randomised(nn.Sequential(*stem(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    fast = cnnkernels.optimize(model, torch.randn(1, 3, 16, 16))
    assert fast.report.dynamic_batch
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (1, 5, 2, 9, 3, 4, 6, 7, 8, 10, 5):
            x = torch.randn(batch, 3, 16, 16)
            assert relative_error(fast(x), model(x)) < 1e-5
    with pytest.warns(UserWarning, match="captured as"):
        x = torch.randn(2, 3, 20, 16)
        assert torch.equal(fast(x), model(x))


def test_batch_fixed_in_the_model():
    class Fixed(nn.Module):
        def forward(self, x):
            return F.relu(x).reshape(2, 768)

    fast = cnnkernels.optimize(Fixed().eval(), torch.randn(X))
    assert not fast.report.dynamic_batch and fast.report.reason is None
    assert fast(torch.randn(X)).shape == (2, 768)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = randomised(nn.Sequential(*stem(), Block(), nn.MaxPool2d(2)))
    x = torch.randn(X)
    fast = cnnkernels.optimize(model, x, dtype=dtype)
    assert fast(x).dtype == dtype
    # The same model given in that dtype.
    own = copy.deepcopy(model).to(dtype)
    direct = cnnkernels.optimize(own, x.to(dtype))
    limit = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float64: 1e-12}[dtype]
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(x.double())
        assert relative_error(fast(x), reference) < max(limit, 1e-6)
        assert relative_error(direct(x.to(dtype)), own(x.to(dtype))) < limit


def test_autocast_and_inference_mode():
    model = randomised(nn.Sequential(*stem(), Block(), nn.Flatten(), nn.Linear(8 * 256, 5)))
    x = torch.randn(X)
    fast = cnnkernels.optimize(model, x)
    with torch.inference_mode():
        assert relative_error(fast(x), model(x)) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        ours, theirs = fast(x), model(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert relative_error(ours, theirs) < 3e-2


def test_gradients_come_from_the_original():
    model = randomised(nn.Sequential(*stem()))
    fast = cnnkernels.optimize(model, torch.randn(X))
    x = torch.randn(X, requires_grad=True)
    with pytest.warns(UserWarning, match="gradient"):
        fast(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_nested_inputs_and_outputs():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, image, *, scale, extra=None):
            y = F.relu(self.conv(image))
            return {"a": y * scale, "b": (y.sum(), None if extra is None else extra["z"] + 1)}

    model = Nested().eval()
    inputs = {
        "image": torch.randn(X),
        "scale": torch.randn(2, 1, 1, 1),
        "extra": {"z": torch.ones(2)},
    }
    fast = cnnkernels.optimize(model, inputs)
    assert fast.report.reason is None
    ours, theirs = fast(**inputs), model(**inputs)
    assert relative_error(ours["a"], theirs["a"]) < 1e-6 and torch.equal(
        ours["b"][1], theirs["b"][1]
    )


def test_wrapped_model():
    model = randomised(nn.Sequential(*stem()))
    fast = check(nn.DataParallel(model), torch.randn(X))
    assert targets(fast) == ["conv2d_relu"]


@pytest.mark.parametrize(
    "pass_name, layer", [("scaled weight", "0 + 1 + 2"), ("dropped relu", "1.conv1")]
)
def test_wrong_pass_is_refused_with_its_layer(pass_name, layer, monkeypatch):
    """A rewrite that is not the same function never reaches the user."""
    real = passes.all_passes()

    class Wrong:
        @staticmethod
        def run(net):
            if pass_name == "scaled weight":
                conv = net.calls(torch.ops.cnnkernels.conv2d_relu.default)[0]
                name = conv.args[1].target
                net.tensors[name] = net.tensors[name] * 1.01
            else:
                conv = net.calls(torch.ops.cnnkernels.conv2d_relu.default)[1]
                conv.target = torch.ops.cnnkernels.conv2d.default

    monkeypatch.setattr(passes, "all_passes", lambda: [*real, Wrong])
    model = randomised(nn.Sequential(nn.Sequential(*stem()), Block()))
    with pytest.raises(NotEqual, match=r"first layer that differs is '.*" + layer.split(" ")[0]):
        cnnkernels.optimize(model, torch.randn(X))


def test_tolerance_is_what_decides():
    model = randomised(nn.Sequential(*stem()))
    with pytest.raises(NotEqual, match=r"at most 0\.00e"):
        cnnkernels.optimize(model, torch.randn(X), tolerance=0)
    seen = []
    fast = cnnkernels.optimize(model, torch.randn(X), report=seen.append)
    assert seen == [fast.report] and all(0 < e.error < 1e-6 for e in fast.report.errors)
    assert "conv" in str(fast.report)


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return F.relu(x)


def _training_dropout():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)).eval()
    model[1].train()
    return model


def _hooked():
    model = nn.Sequential(*stem()).eval()
    model[0].register_forward_hook(lambda module, args, out: None)
    return model


@pytest.mark.parametrize(
    "make, reason",
    [
        (Random, "random"), (Branches, "torch.export"), (Counts, "writes to"),
        (_training_dropout, "training mode"), (_hooked, "hooks"),
    ],
)  # fmt: skip
def test_unsupported_is_left_alone_with_a_reason(make, reason):
    model = make() if isinstance(make, type) is False else make().eval()
    fast = cnnkernels.optimize(model, torch.randn(X))
    assert reason in fast.report.reason
    torch.manual_seed(1)
    x = torch.randn(X)
    torch.manual_seed(2)
    ours = fast(x)
    torch.manual_seed(2)
    assert torch.equal(ours, model(x))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"model": 3}, TypeError, "model must be"),
        ({"dtype": torch.int8}, ValueError, "dtype is torch.int8"),
        ({"layout": "nhwc"}, ValueError, "layout is 'nhwc'; allowed are"),
        ({"tolerance": -1}, ValueError, "tolerance is -1"),
        ({"graph": "yes"}, ValueError, "graph is 'yes'"),
        ({"graph": True}, ValueError, "need inputs on a GPU"),
        ({"example_inputs": 3}, TypeError, "example_inputs must be"),
        ({"example_inputs": []}, ValueError, "no tensor"),
        ({"example_inputs": torch.randn(0, 3, 8, 8)}, ValueError, "empty batch"),
    ],
)
def test_bad_arguments(arguments, error, message):
    arguments = {"model": nn.ReLU().eval(), "example_inputs": torch.randn(X), **arguments}
    model, inputs = arguments.pop("model"), arguments.pop("example_inputs")
    with pytest.raises(error, match=message):
        cnnkernels.optimize(model, inputs, **arguments)


def test_optimised_model_is_for_inference():
    fast = cnnkernels.optimize(nn.Sequential(*stem()).eval(), torch.randn(X))
    assert not list(fast.parameters()) and fast.eval() is fast
    with pytest.raises(ValueError, match="train the original"):
        fast.train()
    with pytest.raises(RuntimeError, match="optimize again"):
        fast.half()
