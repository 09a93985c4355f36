"""Networks: counts, torchvision's weights and outputs, the published structure, bad arguments."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import cnnkernels
from cnnkernels import models
from cnnkernels.models.lenet import C3_TABLE, RBF, digit_codes
from cnnkernels.models.registry import entry

PARAMETERS = {
    ("lenet5", "paper"): 60_000,
    ("lenet5_modern", "paper"): 61_706,
    ("alexnet", "paper"): 60_965_224,
    ("alexnet", "torchvision"): 61_100_840,
    ("zfnet", "paper"): 62_357_608,
    ("vgg11", "paper"): 132_863_336,
    ("vgg13", "paper"): 133_047_848,
    ("vgg16", "paper"): 138_357_544,
    ("vgg19", "paper"): 143_667_240,
    ("vgg16_bn", "torchvision"): 138_365_992,
    ("googlenet", "paper"): 13_378_280,
    ("googlenet", "torchvision"): 13_004_888,
    ("resnet18", "paper"): 11_689_512,
    ("resnet34", "paper"): 21_797_672,
    ("resnet50", "torchvision"): 25_557_032,
    ("resnet101", "torchvision"): 44_549_160,
    ("resnet152", "torchvision"): 60_192_808,
    ("resnet20_cifar", "paper"): 269_722,
    ("resnet56_cifar", "paper"): 853_018,
    ("plain20_cifar", "paper"): 269_722,
    ("plain56_cifar", "paper"): 853_018,
}
EVERY = [(name, variant) for name in models.list_models() for variant in entry(name).variants]


@pytest.fixture(autouse=True)
def _compiled():
    """The compiled CPU kernels, where built: Triton's interpreter takes minutes for a network."""
    with cnnkernels.use("cpu"):
        yield


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "variant"), PARAMETERS)
def test_parameter_counts(name, variant):
    assert count(models.create(name, variant, device="meta")) == PARAMETERS[name, variant]


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_builds_and_runs_on_meta(name, variant):
    start = time.perf_counter()
    model = models.create(name, variant, device="meta").eval()
    assert time.perf_counter() - start < 5  # nothing is allocated or drawn
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    out = model(torch.empty(2, *model.input_size, device="meta"))
    assert out.shape[0] == 2
    assert out.shape[1] in (10, 1000, 480, 672)
    assert (model.name, model.variant) == (name, variant)


def test_constructor_of_each_name():
    for name in models.list_models():
        assert getattr(models, name) is entry(name).constructor
        assert name in models.__all__
    assert count(models.vgg16_bn(num_classes=10, device="meta")) < count(
        models.vgg16_bn(device="meta")
    )


def test_torchvision_variants_cover_torchvision():
    torchvision = pytest.importorskip("torchvision")
    for name in models.list_models("torchvision"):
        ours = models.create(name, "torchvision", device="meta").state_dict()
        with torch.device("meta"):
            kwargs = {"init_weights": False} if name == "googlenet" else {}
            theirs = torchvision.models.get_model(name, weights=None, **kwargs).state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def scrambled(name, **kwargs):
    """torchvision's network with random weights and batch-norm statistics, in eval mode."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **kwargs)
    model = model.to_empty(device="cpu").eval()
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() > 1:  # keeps the signal's size from layer to layer
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif key.endswith("weight"):
            tensor.uniform_(0.3, 0.8)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.1)
    return model


@pytest.mark.parametrize(
    ("name", "side", "kwargs"),
    [
        ("alexnet", 71, {}),
        ("vgg11", 32, {}),
        ("vgg16", 39, {}),
        ("vgg16_bn", 32, {}),
        ("googlenet", 64, {"aux_logits": False}),
        ("googlenet", 64, {"aux_logits": True, "transform_input": True}),
        ("resnet18", 65, {}),
        ("resnet50", 64, {}),
        ("resnet152", 33, {}),
    ],
)
def test_torchvision_weights_give_torchvision_outputs(name, side, kwargs):
    extra = {"init_weights": False} if name == "googlenet" else {}
    theirs = scrambled(name, **kwargs, **extra)
    ours = models.create(name, "torchvision", device="meta", **kwargs).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        want, got = theirs(x), ours(x)
    assert want.std() > 1e-3  # the comparison means something
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_googlenet_auxiliary_outputs_in_training():
    theirs = scrambled("googlenet", aux_logits=True, init_weights=False).train()
    ours = models.googlenet("torchvision", device="meta").train()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    for model in (theirs, ours):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        want, got = theirs(x), ours(x)
    assert got._fields == ("logits", "aux_logits2", "aux_logits1")
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_googlenet_published_form():
    model = models.googlenet(device="meta")
    assert model.inception3a.branch3[1].kernel_size == (5, 5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert count(models.googlenet(aux_logits=False, device="meta")) == 6_998_552
    outputs = model.train()(torch.empty(2, 3, 224, 224, device="meta"))
    assert [tuple(o.shape) for o in outputs] == [(2, 1000)] * 3


def test_alexnet_ablations_and_orders():
    full = count(models.alexnet(device="meta"))
    assert count(models.alexnet(towers=1, device="meta")) == 62_378_344
    assert full - count(models.alexnet(without=(7,), device="meta")) == 16_781_312
    assert full - count(models.alexnet(without=(3, 4, 6, 7), device="meta")) == 51_110_656
    x = torch.empty(1, 3, 227, 227, device="meta")
    for without in ((), (2,), (5,), (3, 4), (2, 3, 4, 5, 6, 7)):
        assert models.alexnet(without=without, device="meta")(x).shape == (1, 1000)
    assert models.alexnet(order="pool_norm", device="meta")(x).shape == (1, 1000)
    small = models.alexnet(side=67, width=0.125, num_classes=10, device="meta")
    assert small(torch.empty(2, 3, 67, 67, device="meta")).shape == (2, 10)
    assert count(small) < full / 50


def test_alexnet_orders_differ_and_match_torch():
    """Both orders, from the definition in torch.nn.functional."""
    torch.manual_seed(0)
    F = nn.functional
    x = torch.randn(1, 3, 227, 227)
    for order in ("norm_pool", "pool_norm"):
        model = models.alexnet(order=order).eval()
        y = x
        for name, module in model.features.named_children():
            if name.startswith("conv"):
                y = F.conv2d(
                    y, module.weight, module.bias, module.stride, module.padding,
                    groups=module.groups,
                ).relu()  # fmt: skip
                norm = name in ("conv1", "conv2")
                if norm and order == "norm_pool":
                    y = F.local_response_norm(y, 5, alpha=5e-4, beta=0.75, k=2)
                if name in ("conv1", "conv2", "conv5"):
                    y = F.max_pool2d(y, 3, 2)
                if norm and order == "pool_norm":
                    y = F.local_response_norm(y, 5, alpha=5e-4, beta=0.75, k=2)
        with torch.no_grad():
            torch.testing.assert_close(model.features(x), y, rtol=1e-4, atol=1e-5)


def test_lenet5_is_the_network_of_1998():
    model = models.lenet5()
    assert sum(b.numel() for b in model.buffers() if b.shape == (10, 84)) == 840
    assert sum(map(len, C3_TABLE)) == 60
    layers = dict(model.features.named_children())
    sizes = {n: count(layers[n]) for n in ("c1", "s2", "c3", "s4", "c5")}
    assert sizes == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120}
    # A map of C3 answers to the maps of its row and to no other.
    x = torch.zeros(6, 6, 5, 5)
    x[range(6), range(6)] = 1.0  # picture i has only map i
    with torch.no_grad():
        layers["c3"].bias.zero_()
        seen = layers["c3"](x)[:, :, 0, 0] != 0
    assert [tuple(seen[:, o].nonzero()[:, 0].tolist()) for o in range(16)] == list(C3_TABLE)
    # S2: coefficient times the sum of four, plus bias.
    x = torch.arange(96.0).view(1, 6, 4, 4)
    s2 = layers["s2"]
    want = x[0, 2, :2, 2:].sum() * s2.weight[2] + s2.bias[2]
    torch.testing.assert_close(s2(x)[0, 2, 0, 1], want)


def test_lenet5_output_codes_and_loss():
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    apart = torch.cdist(codes, codes, p=1) / 2 + 99 * torch.eye(10)
    assert apart.min() >= 4  # pixels
    assert torch.equal(RBF(codes)(codes).argmax(1), torch.arange(10))
    out = torch.tensor([[-1.0, -2.0, -5.0]])
    target = torch.tensor([1])
    penalties = -out[0]
    want = penalties[1] + torch.log(torch.exp(torch.tensor(-0.1)) + torch.exp(-penalties).sum())
    torch.testing.assert_close(models.lenet5_loss(out, target), want)
    with pytest.raises(ValueError, match="j is 0; it must be positive"):
        models.lenet5_loss(out, target, j=0)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern", "resnet20_cifar", "plain20_cifar"])
def test_learns(name):
    torch.manual_seed(0)
    model = models.create(name, **({"width": 8} if "cifar" in name else {}))
    x = torch.randn(8, *model.input_size)
    y = torch.arange(8)
    loss_of = models.lenet5_loss if name == "lenet5" else nn.functional.cross_entropy
    rate = {"lenet5": 0.02, "lenet5_modern": 0.1}.get(name, 0.02)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for _ in range(10 if "cifar" in name else 30):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < 0.9 * losses[0]


def test_resnet_variants():
    paper, torchvision = (
        models.resnet50(device="meta"),
        models.resnet50("torchvision", device="meta"),
    )
    assert paper.layer2[0].conv1.stride == (2, 2)
    assert torchvision.layer2[0].conv2.stride == (2, 2)
    counts = [count(models.resnet34(shortcut=s, device="meta")) for s in "ABC"]
    assert counts == sorted(set(counts))  # A < B < C
    assert count(models.resnet110_cifar(device="meta")) == 1_727_962
    tiny = models.resnet20_cifar(in_channels=1, width=8, num_classes=7, device="meta")
    assert tiny.input_size == (1, 32, 32)
    assert tiny(torch.empty(3, 1, 28, 28, device="meta")).shape == (3, 7)


def test_option_a_shortcut():
    torch.manual_seed(0)
    shortcut = models.resnet20_cifar().layer2[0].downsample
    x = torch.randn(1, 16, 4, 4)
    y = shortcut(x)
    assert count(shortcut) == 0
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert y.shape == (1, 32, 2, 2)
    assert not y[:, 16:].any()


def test_zfnet_sizes():
    model = models.zfnet(device="meta")
    x = torch.empty(1, 3, 224, 224, device="meta")
    sides = []
    for layer in model.features:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides == [55, 55, 13, 13, 13, 13, 6]


def _convs_of(model):
    """(out, in/groups, kernel, kernel, stride, groups) of each convolution."""
    return sorted(
        (*module.weight.shape, module.stride[0], module.groups)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    )


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("bvlc_alexnet", lambda: models.alexnet(device="meta")),
        ("zfnet512", lambda: models.zfnet(widths=(512, 512, 512), device="meta")),
        ("vgg19", lambda: models.vgg19(device="meta")),
        ("inception_v1", lambda: models.googlenet(aux_logits=False, device="meta")),
        ("resnet50", lambda: models.resnet50("torchvision", device="meta")),
    ],
)
def test_structure_equals_the_caffe_models(file, model):
    """The convolutions have the shapes, strides and groups of Caffe's networks as ONNX graphs."""
    onnx = pytest.importorskip("onnx")
    path = Path(onnx.__file__).parent / f"backend/test/data/light/light_{file}.onnx"
    if not path.exists():
        pytest.skip(f"this onnx package has no {path.name}")
    graph = onnx.load(path).graph
    shapes = {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in graph.input}
    # The light files make their weights with ConstantOfShape from a shape tensor.
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(int(s) for s in tensors[node.input[0]])
    want = []
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            shape = shapes[node.input[1]]
            want.append((*shape, attributes.get("strides", [1])[0], attributes.get("group", 1)))
    assert len(want) >= 5
    assert _convs_of(model()) == sorted(want)


def test_dtype_and_device_arguments():
    model = models.resnet20_cifar(dtype=torch.float16, device="meta")
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert next(models.lenet5().parameters()).device == torch.empty(()).device


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("vgg61"), r"name is 'vgg61'.*vgg16"),
        (
            lambda: models.create("resnet50", "caffe"),
            r"variant of resnet50 is 'caffe'; allowed are",
        ),
        (lambda: models.create("vgg16_bn", "paper"), r"allowed are 'torchvision'"),
        (
            lambda: models.list_models("caffe"),
            r"variant is 'caffe'; allowed are paper, torchvision",
        ),
        (lambda: models.alexnet(towers=3), r"towers is 3; allowed are 1 and 2"),
        (lambda: models.alexnet(order="x"), r"order is 'x'; allowed are"),
        (lambda: models.alexnet(without=(1,)), r"without is \(1,\); allowed are layers 2 to 7"),
        (lambda: models.alexnet(side=66), r"side is 66; it must be at least 67"),
        (lambda: models.alexnet(width=0.01), r"width is 0.01; it must be a positive multiple"),
        (lambda: models.VGG(12), r"depth is 12; allowed are 11, 13, 16, 19"),
        (lambda: models.ResNet(19), r"depth is 19; allowed are 18, 34, 50, 101, 152"),
        (lambda: models.ResNet(50, shortcut=None), r"plain networks are 18 and 34 deep"),
        (lambda: models.CifarResNet(21), r"depth is 21; it must be 6n \+ 2"),
        (lambda: models.CifarResNet(20, shortcut="D"), r"shortcut is 'D'; allowed are"),
        (lambda: models.lenet5_modern(padding=1), r"padding is 1; allowed are 2"),
        (lambda: models.zfnet(widths=(1, 2)), r"widths is \(1, 2\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("name", "side"), [("alexnet", 224), ("zfnet", 227), ("lenet5", 28)])
def test_wrong_picture_size_is_named(name, side):
    model = models.create(name, device="meta")
    with pytest.raises(AssertionError, match=rf"input has shape .*{side}, {side}"):
        model(torch.empty(1, model.input_size[0], side, side, device="meta"))


def test_refuses_another_package_name(tmp_path):
    root = Path(importlib.util.find_spec("cnnkernels.models").origin).parent
    script = (
        "import importlib.util as u, sys\n"
        f"spec = u.spec_from_file_location('models', {str(root / '__init__.py')!r},"
        f" submodule_search_locations=[{str(root)!r}])\n"
        "module = u.module_from_spec(spec); sys.modules['models'] = module\n"
        "spec.loader.exec_module(module)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "imported as cnnkernels.models, not as 'models'" in done.stderr
