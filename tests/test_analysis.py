"""The analysis of networks: known counts, torch's own counters, memory against the allocator."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cnnkernels
from cnnkernels import models
from cnnkernels.analysis import inspect_model, render
from cnnkernels.analysis.counts import sharing
from cnnkernels.analysis.equivariance import change_under_shift, equivariance_error
from cnnkernels.analysis.gradients import decay, gradient_norms, patches
from cnnkernels.analysis.memory import measure_training_memory, predict_training_memory
from cnnkernels.analysis.receptive_field import Field, join, stacked
from cnnkernels.analysis.roofline import floor, floors
from cnnkernels.models.registry import entry

# multiply-accumulates at the published input size
MACS = {
    ("alexnet", "paper"): 724_406_816,
    ("googlenet", "paper"): 1_582_671_872,
    ("vgg11", "paper"): 7_609_090_048,
    ("vgg13", "paper"): 11_308_466_176,
    ("vgg16", "paper"): 15_470_264_320,
    ("vgg19", "paper"): 19_632_062_464,
    ("resnet18", "paper"): 1_814_073_344,
    ("resnet34", "paper"): 3_663_761_408,
    ("resnet50", "torchvision"): 4_089_184_256,
    ("resnet101", "torchvision"): 7_801_405_440,
    ("resnet152", "torchvision"): 11_513_626_624,
    ("inception_naive", "paper"): 854_196_224,
    ("inception_bottleneck", "paper"): 271_351_808,
}


@pytest.fixture(autouse=True)
def _compiled():
    """The compiled CPU kernels, where built: Triton's interpreter takes minutes for a network."""
    with cnnkernels.use("cpu"):
        yield


def table(name, variant=None, **kwargs):
    return inspect_model(models.create(name, variant, device="meta"), **kwargs)


@pytest.mark.parametrize(("name", "variant"), MACS)
def test_macs(name, variant):
    assert table(name, variant).macs == MACS[name, variant]


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("lenet5", 5), ("lenet5_modern", 5), ("alexnet", 8), ("zfnet", 8), ("vgg11", 11),
        ("vgg19", 19), ("googlenet", 22), ("resnet18", 18), ("resnet34", 34), ("resnet50", 50),
        ("resnet152", 152), ("plain34", 34), ("resnet20_cifar", 20), ("plain110_cifar", 110),
    ],
)  # fmt: skip
def test_depth(name, depth):
    assert table(name).depth == depth


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "googlenet", "resnet50", "resnet18"])
def test_equals_torchs_flop_counter_on_torchvisions_own_network(name):
    """An independent network and an independent counter give the same operations."""
    torchvision = pytest.importorskip("torchvision")
    kwargs = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, **kwargs).eval()
        x = torch.empty(2, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(x)
    ours = table(name, "torchvision", batch=2)
    assert 2 * ours.macs == counter.get_total_flops()
    again = inspect_model(theirs, (3, 224, 224), 2)
    assert (again.macs, again.depth) == (ours.macs, ours.depth)
    assert again.parameters == ours.parameters


@pytest.mark.parametrize("name", ["lenet5_modern", "resnet20_cifar", "zfnet"])
def test_output_shapes_are_those_of_a_real_run(name):
    model = models.create(name).eval()
    seen = {}
    for key, module in model.named_modules():
        module.register_forward_hook(lambda m, a, out, key=key: seen.update({key: out.shape}))
    with torch.no_grad():
        model(torch.randn(3, *model.input_size))
    report = inspect_model(model, batch=3)
    assert len(report.rows) >= 5
    checked = 0
    for row in report.rows:
        if row.name in seen and not row.fused:
            assert (3, *row.output) == tuple(seen[row.name])
            assert row.bytes == 4 * seen[row.name].numel()
            checked += 1
    assert checked >= 3


def test_vgg16_totals():
    report = table("vgg16")
    assert len(report.rows) == 21
    assert report.activations == 15_237_608
    assert report.weights == 138_344_128
    assert report.parameters == 138_357_544
    assert report["features.0"].parameters == 1_792
    assert report["classifier.0"].output == (4096,)
    assert table("vgg16", batch=4).activations == 4 * report.activations
    assert table("vgg16", dtype=torch.float16).activation_bytes == 2 * report.activations


@pytest.mark.parametrize(
    ("name", "row", "side", "jump"),
    [
        ("lenet5", "features.s4", 16, 4),
        ("alexnet", "features.conv1", 11, 4),
        ("alexnet", "features.conv5.pool", 195, 32),
        ("vgg16", "features.28.pool", 212, 32),
        ("resnet18", "layer4.1.add_relu", 435, 32),
    ],
)
def test_receptive_fields(name, row, side, jump):
    found = table(name)[row]
    assert found.receptive_field == (side, side)
    assert found.jump == (jump, jump)


def test_receptive_field_is_where_gradients_come_from():
    """Predicted by arithmetic, seen by differentiating one output element."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, (3, 5), stride=(1, 2)),
        nn.Conv2d(1, 1, 3, dilation=(2, 1)),
        nn.AvgPool2d(2),
        nn.Conv2d(1, 1, 3, stride=2),
    ).double()
    for p in net.parameters():
        nn.init.constant_(p, 0.5)
    x = torch.rand(1, 1, 48, 64, dtype=torch.float64, requires_grad=True)
    out = net(x)
    spans = []
    for i in (0, 1):  # two neighbours give the jump
        grad = torch.autograd.grad(out[0, 0, i, i], x, retain_graph=True)[0][0, 0] != 0
        rows, columns = grad.any(1).nonzero(), grad.any(0).nonzero()
        spans.append([(int(r[0]), int(r[-1]) + 1) for r in (rows, columns)])
    row = inspect_model(net, (1, 48, 64)).rows[-1]
    assert row.receptive_field == tuple(b - a for a, b in spans[0])
    assert row.jump == tuple(spans[1][i][0] - spans[0][i][0] for i in (0, 1))


def test_fields():
    assert stacked([3, 3, 3]) == 7
    assert stacked([]) == 1
    assert Field().through((3, 3), (2, 2)).through((3, 3)).size == (7, 7)
    a, b = Field((3, 9), (1, 1), 2), Field((5, 5), (2, 2), 1)
    assert join([a, b]) == Field((5, 9), (2, 2), 2)
    assert join([]) == Field()


class Functional(nn.Module):
    """A user's network that calls functions, with two paths and a residual connection."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 3, 3, 3))
        self.conv = nn.Conv2d(8, 8, 5, padding=2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        F = nn.functional
        x = F.relu(F.conv2d(x, self.weight, padding=1))
        x = F.max_pool2d(x, 2)
        x = x + self.conv(x)
        x = torch.cat([x, x * 2], 1)
        return self.fc(x.mean((2, 3)))


def test_follows_function_calls():
    with torch.device("meta"):
        report = inspect_model(Functional(), (3, 16, 16))
    assert [row.type for row in report.rows] == [
        "conv2d", "max_pool2d", "Conv2d", "add", "cat", "Linear",
    ]  # fmt: skip
    assert report.macs == 16 * 16 * 8 * 27 + 8 * 8 * 8 * 8 * 25 + 160
    assert report.depth == 3
    assert [row.receptive_field[0] for row in report.rows[:5]] == [3, 4, 12, 12, 12]
    assert report.rows[-1].receptive_field == (12 + 7 * 2, 12 + 7 * 2)
    assert report.parameters == 8 * 27 + 8 * 8 * 25 + 8 + 170


def test_leaves_the_model_as_it_was():
    model = models.lenet5_modern().train()
    model.features.eval()
    before = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    inspect_model(model)
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_mode_runs_the_auxiliary_classifiers():
    assert sum(r.parameters for r in table("googlenet").rows) == 6_998_552
    assert sum(r.parameters for r in table("googlenet", training=True).rows) == 13_378_280


def test_render():
    report = table("alexnet", batch=2)
    text = render(report)
    assert "features.conv1" in text
    assert "60,965,224" in text
    values = json.loads(render(report, "json"))
    assert values["totals"]["macs"] == 2 * 724_406_816
    assert values["layers"][0]["output"] == [96, 55, 55]
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert len(rows) == len(report.rows)
    assert rows[0]["output"] == "96x55x55"
    assert report.layer("classifier.*").parameters == 58_631_144
    assert [r.name for r in report.layer("classifier.*").rows] == [
        "classifier.fc6", "classifier.fc7", "classifier.fc8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: render(table("lenet5"), "xml"), "format is 'xml'; allowed are table, json, csv"),
        (lambda: table("lenet5").layer("x"), "layer is 'x', which matches none of: features.c1"),
        (lambda: table("lenet5", batch=0), "batch is 0; it must be a positive int"),
        (lambda: table("vgg11", input_size=(3, 0, 5)), r"input_size is \(3, 0, 5\)"),
        (lambda: inspect_model(nn.ReLU()), "input_size is None"),
        (lambda: sharing(nn.Conv2d(3, 8, 3), (4, 8, 8)), r"input_size is \(4, 8, 8\)"),
        (lambda: floor(table("lenet5").rows[0], 0, 1), "peak_flops is 0"),
        (lambda: predict_training_memory(models.lenet5(), 0), "batch is 0"),
        (lambda: patches(torch.zeros(1, 8, 8), 5, 4), "count is 5; the picture has 4 squares"),
        (lambda: equivariance_error(nn.ReLU(), torch.zeros(1, 1, 9, 9), 3, 2), "multiple of jump"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_row():
    with pytest.raises(KeyError, match="no row 'x'"):
        table("lenet5")["x"]


def test_sharing_is_that_of_a_dense_matrix():
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    found = sharing(conv, (2, 7, 5))
    jacobian = torch.autograd.functional.jacobian(conv, torch.rand(1, 2, 7, 5).double())
    assert found.dense == jacobian.numel()
    assert found.unshared == found.shared * 4 * 3
    assert found.shared == 54


def test_roofline():
    report = table("vgg16")
    # A machine without memory cost and one without compute cost.
    compute = floors(report, 1e12, 1e30)
    memory = floors(report, 1e30, 1e9)
    assert sum(f.seconds for f in compute) == pytest.approx(report.flops / 1e12)
    assert {f.limit for f in memory} == {"memory"}
    first = memory[0]
    assert first.bytes == 4 * (3 * 224 * 224 + 1_792 + 64 * 224 * 224)
    assert first.seconds == pytest.approx(first.bytes / 1e9)
    assert first.intensity == pytest.approx(2 * 86_704_128 / first.bytes)


@pytest.mark.parametrize(("name", "batch"), [("resnet20_cifar", 8), ("lenet5", 64), ("zfnet", 2)])
def test_training_memory_against_the_allocator(name, batch):
    model = models.create(name)
    with cnnkernels.use("reference"):
        predicted = predict_training_memory(model, batch)
        measured = measure_training_memory(model, batch)
    assert predicted.weights == sum(p.nbytes for p in model.parameters())
    assert predicted.optimizer == predicted.weights
    # Kernels need workspaces, and the reference's chains make temporaries, that the play has not.
    assert 0.97 <= measured / predicted.peak <= 1.3


def test_training_memory_grows_with_the_batch():
    small, large = (predict_training_memory(models.alexnet(device="meta"), n) for n in (32, 64))
    assert small.weights == large.weights == 4 * 60_965_224
    assert large.saved == pytest.approx(2 * small.saved, rel=0.01)


def test_equivariance():
    x = torch.rand(1, 3, 40, 40)
    conv = nn.Conv2d(3, 4, 3, bias=False)
    assert equivariance_error(conv, x, 4) < 1e-6
    assert equivariance_error(nn.Sequential(conv, nn.MaxPool2d(2)), x, 4, jump=2) < 1e-6
    position = torch.linspace(0, 1, 1000)

    def absolute(t):  # not equivariant: depends on where a pixel is
        return t * position[: t.shape[-1]]

    assert equivariance_error(absolute, x, 4) > 0.05
    assert change_under_shift(lambda t: t.mean((2, 3)), x, 1) < 0.05
    assert change_under_shift(lambda t: t, x, 1) > 0.3


def test_gradient_norms():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Flatten())
    x, y = torch.randn(5, 1, 6, 6), torch.arange(5)
    norms = gradient_norms(net, x, y)
    assert all(p.grad is None for p in net.parameters())
    hidden = net[0](x).detach().requires_grad_()
    nn.functional.cross_entropy(net[2](hidden.relu()).flatten(1), y).backward()
    assert list(norms) == ["0", "2"]
    assert norms["0"] == pytest.approx(float(hidden.grad.norm()), rel=1e-4)
    assert decay(norms) == pytest.approx(norms["0"] / norms["2"])


def test_patches():
    image = torch.arange(2 * 4 * 6).view(2, 4, 6)
    found = patches(image, 5, 2)
    assert torch.equal(found[4], image[:, 2:4, 2:4])


def test_the_documented_table_is_computed():
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.count("|") == 7]
    rows = rows[2:]  # the head
    assert len(rows) == sum(len(entry(name).variants) for name in models.list_models())
    for name, variant, size, parameters, macs, depth in rows:
        report = table(name, variant)
        assert size == "×".join(map(str, report.input_size))
        assert parameters == f"{report.parameters:,}"
        assert (macs, depth) == (f"{report.macs:,}", str(report.depth))
